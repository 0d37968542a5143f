# A rule a batch of emotions: its outputs are files under keys, which no wildcard could name.
for number, emotions in enumerate(build.batches):

    rule:
        name:
            f"choose_examples_{number}"
        input:
            get_snapshot(emotions),
        output:
            update([build.examples(emotion) for emotion in emotions]),
        log:
            f"logs/examples/batch_{number}.log",
        group:
            get_group("examples")
        localrule: runs_here()
        conda:
            "../envs/light.yaml"
        resources:
            **get_light_resources(),
        params:
            rules=build.rules.ingredients(),
            index=build.index_settings(),
            files=get_batch_files(emotions, get_example_files),
            names=get_batch_names(emotions, get_example_files),
            recipes=get_recipes,
        message:
            "Examples of {params.names}"
        script:
            "../scripts/examples.py"


rule examples:
    input:
        [ancient(build.examples(emotion)) for emotion in build.emotions],
