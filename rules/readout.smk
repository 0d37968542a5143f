def get_release(wildcards):
    if wildcards.key not in build.releases:
        raise WorkflowError(f"the release {wildcards.key} is not part of the current build")
    return build.releases[wildcards.key]


def get_release_vectors(wildcards):
    chosen = get_release(wildcards)
    files = [path for emotion in chosen.emotions for path in build.vectors(emotion, chosen.layers)]
    return unless_stored(build.release(chosen), files)


def get_release_indices(wildcards):
    return unless_stored(build.release(get_release(wildcards)), build.indices)


def get_vector_files(wildcards):
    chosen = get_release(wildcards)
    return {
        emotion: dict(zip(chosen.layers, build.vectors(emotion, chosen.layers)))
        for emotion in chosen.emotions
    }


def get_counts(wildcards):
    return {
        emotion: build.plan.emotions[emotion]["counts"]
        for emotion in get_release(wildcards).emotions
    }


def get_release_layers(wildcards):
    return get_release(wildcards).layers


rule merge_readout:
    input:
        vectors=get_release_vectors,
        indices=get_release_indices,
    output:
        vectors=f"{build.store}/releases/{{key}}/vectors.safetensors",
        manifest=f"{build.store}/releases/{{key}}/manifest.json",
    log:
        "logs/readout/{key}.log",
    conda:
        "../envs/light.yaml"
    params:
        space=build.space,
        layers=get_release_layers,
        vectors=get_vector_files,
        counts=get_counts,
        facts=build.facts(),
    message:
        "Release {wildcards.key}"
    script:
        "../scripts/readout.py"


# One publishing rule a target, so that a person can type `snakemake emotion_joy`: a rule with wildcards is no target.
for chosen in build.selections.values():

    rule:
        name:
            chosen.target
        input:
            [ancient(path) for path in get_stored(chosen.target)],
        output:
            build.marker(chosen),
            update(get_results(chosen.target)),
        log:
            f"logs/publish/{chosen.target}.log",
        conda:
            "../envs/light.yaml"
        params:
            release=chosen.key,
            prefix=f"{chosen.target}.",
        message:
            f"Publish {chosen.target} in {build.results}/{chosen.folder}"
        script:
            "../scripts/publish.py"
