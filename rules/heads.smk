# A rule a batch of emotions, as in examples.smk.
for number, emotions in enumerate(build.batches):

    rule:
        name:
            f"measure_heads_{number}"
        input:
            examples=get_batch_examples(emotions, build.heads),
            indices=get_batch_indices(emotions, build.heads),
        output:
            update([path for emotion in emotions for path in build.heads(emotion)]),
        log:
            f"logs/heads/batch_{number}.log",
        conda:
            "../envs/light.yaml"
        params:
            layers=build.layers,
            min_examples=build.config["min_examples"],
            files=get_batch_files(emotions, build.heads),
            names=get_batch_names(emotions, build.heads),
        message:
            "Heads of {params.names}"
        script:
            "../scripts/heads.py"


rule heads:
    input:
        [ancient(path) for emotion in build.emotions for path in build.heads(emotion)],
