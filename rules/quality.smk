# A rule a batch of emotions, as in examples.smk.
for number, emotions in enumerate(build.batches):

    rule:
        name:
            f"measure_emotions_{number}"
        input:
            examples=get_batch_inputs(emotions, build.figures, get_example_files),
            vectors=get_batch_inputs(emotions, build.figures, build.vectors),
            indices=get_batch_shared(emotions, build.figures, build.indices),
            weights=get_batch_shared(emotions, build.figures, build.weights()),
            neutral=get_batch_shared(emotions, build.figures, get_neutral()),
        output:
            update([path for emotion in emotions for path in build.figures(emotion)]),
        log:
            f"logs/figures/batch_{number}.log",
        group:
            get_group("vectors")
        localrule: runs_here()
        conda:
            "../envs/light.yaml"
        resources:
            **get_light_resources(),
        params:
            method=build.config["method"],
            denoise=build.config["denoise"],
            neutral=next(iter(get_neutral()), None),
            weights=get_weights_files(),
            files=get_batch_vectors(emotions, build.figures),
            names=get_batch_names(emotions, build.figures),
            recipes=get_recipes,
        message:
            "Figures of {params.names}"
        script:
            "../scripts/figures.py"


rule measure_quality:
    input:
        files=get_quality_inputs,
        indices=get_quality_indices,
    output:
        update(build.quality),
    log:
        "logs/quality.log",
    group:
        get_group("vectors")
    localrule: runs_here()
    conda:
        "../envs/light.yaml"
    resources:
        **get_light_resources(),
    params:
        layers=build.layers,
        files=get_quality_files(),
        together=get_together(),
        families=build.families(),
        recipes=get_recipes,
    message:
        "Quality figures"
    script:
        "../scripts/quality.py"


rule quality:
    input:
        ancient(build.quality),
