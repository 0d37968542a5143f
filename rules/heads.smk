# A rule a batch of emotions, as in examples.smk.
for number, emotions in enumerate(build.batches):

    rule:
        name:
            f"measure_heads_{number}"
        input:
            examples=get_batch_inputs(emotions, build.heads, get_example_files),
            vectors=get_batch_inputs(emotions, build.heads, build.vectors),
            indices=get_batch_shared(emotions, build.heads, build.indices),
            weights=get_batch_shared(emotions, build.heads, build.weights()),
        output:
            update([path for emotion in emotions for path in build.heads(emotion)]),
        log:
            f"logs/heads/batch_{number}.log",
        group:
            get_group("vectors")
        localrule: runs_here()
        conda:
            "../envs/light.yaml"
        resources:
            **get_light_resources(),
        params:
            min_examples=build.config["min_examples"],
            weights=get_weights_files(),
            files=get_batch_vectors(emotions, build.heads),
            names=get_batch_names(emotions, build.heads),
            recipes=get_recipes,
        message:
            "Heads of {params.names}"
        script:
            "../scripts/heads.py"


rule heads:
    input:
        [ancient(path) for emotion in build.emotions for path in build.heads(emotion)],
