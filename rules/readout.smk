rule merge_readout:
    input:
        snapshot=get_release_snapshot,
        vectors=get_release_vectors,
        indices=get_release_indices,
    output:
        vectors=update(f"{build.store}/releases/{{key}}/vectors.safetensors"),
        manifest=update(f"{build.store}/releases/{{key}}/manifest.json"),
    log:
        "logs/readout/{key}.log",
    group:
        get_group("vectors")
    localrule: runs_here()
    conda:
        "../envs/light.yaml"
    resources:
        **get_light_resources(),
    params:
        layers=get_release_layers,
        vectors=get_vector_files,
        counts=get_counts,
        facts=build.facts(),
        origin=get_origin,
        recipes=get_recipes,
    message:
        "Release {wildcards.key}"
    script:
        "../scripts/readout.py"


rule draw_overview:
    input:
        vectors=get_overview_vectors,
        manifest=get_overview_manifest,
        quality=get_overview_quality,
    output:
        update(build.overview),
    log:
        "logs/overview.log",
    group:
        get_group("vectors")
    localrule: runs_here()
    conda:
        "../envs/light.yaml"
    resources:
        **get_light_resources(),
    params:
        recipes=get_recipes,
    message:
        "Overview picture"
    script:
        "../scripts/overview.py"


# One publishing rule a target, so that a person can type `snakemake emotion_joy`: a rule with wildcards is no target.
for chosen in build.selections.values():

    rule:
        name:
            chosen.target
        input:
            [ancient(path) for path in get_stored(chosen.target)],
        output:
            build.marker(chosen),
            get_shown_results(chosen.target),
        log:
            f"logs/publish/{chosen.target}.log",
        localrule: True
        conda:
            "../envs/light.yaml"
        params:
            release=chosen.key,
            prefix=f"{chosen.target}.",
        message:
            f"Publish {chosen.target} in {build.results}/{chosen.folder}"
        script:
            "../scripts/publish.py"
