# A rule a batch of emotions, as in examples.smk.
for number, emotions in enumerate(build.batches):

    rule:
        name:
            f"compute_vectors_{number}"
        input:
            examples=get_batch_inputs(emotions, build.vectors, get_example_files),
            indices=get_batch_shared(emotions, build.vectors, build.indices),
            neutral=get_batch_shared(emotions, build.vectors, get_neutral()),
        output:
            update([path for emotion in emotions for path in build.vectors(emotion)]),
        log:
            f"logs/vectors/batch_{number}.log",
        group:
            get_group("vectors")
        localrule: runs_here()
        conda:
            "../envs/light.yaml"
        resources:
            **get_light_resources(),
        params:
            layers=build.layers,
            min_examples=build.config["min_examples"],
            method=build.config["method"],
            denoise=build.config["denoise"],
            neutral=next(iter(get_neutral()), None),
            files=get_batch_files(emotions, build.vectors),
            names=get_batch_names(emotions, build.vectors),
            recipes=get_recipes,
        message:
            "Vectors of {params.names}"
        script:
            "../scripts/vectors.py"


rule vectors:
    input:
        [ancient(path) for emotion in build.emotions for path in build.vectors(emotion)],
