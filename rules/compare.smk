# `compare`: all methods, at all layers and poolings of the build; `sweep`: the build's method at all layers of the model.
for name in ["compare", "sweep"] if build.layers else ["sweep"]:
    for number, emotions in enumerate(build.batches):

        rule:
            name:
                f"{name}_{number}"
            input:
                examples=get_batch_inputs(emotions, get_compared(name), get_example_files),
                indices=get_batch_shared(emotions, get_compared(name), get_comparison_indices(name)),
                neutral=get_batch_shared(emotions, get_compared(name), get_neutral()),
            output:
                update([build.compared(name, emotion) for emotion in emotions]),
            log:
                f"logs/{name}/batch_{number}.log",
            group:
                get_group("vectors")
            localrule: runs_here()
            conda:
                "../envs/light.yaml"
            resources:
                **get_light_resources(),
            params:
                comparison=build.comparison(name),
                indices=build.comparison_indices(name),
                neutral=next(iter(get_neutral()), None),
                min_examples=build.config["min_examples"],
                files=get_batch_files(emotions, get_compared(name)),
                names=get_batch_names(emotions, get_compared(name)),
                recipes=get_recipes,
            message:
                "Comparison of {params.names}"
            script:
                "../scripts/compare.py"

    rule:
        name:
            f"merge_{name}"
        input:
            get_comparison_files(name),
        output:
            update(build.compared_all(name)),
        log:
            f"logs/{name}.log",
        group:
            get_group("vectors")
        localrule: runs_here()
        conda:
            "../envs/light.yaml"
        resources:
            **get_light_resources(),
        params:
            chosen_for=build.swept() if name == "sweep" else None,
            most=build.config["sweep_layers"],
            recipes=get_recipes,
        message:
            f"Merge of {name}"
        script:
            "../scripts/comparison.py"

    rule:
        name:
            name
        input:
            [ancient(path) for path in build.compared_all(name)],
        output:
            f"{build.results}/.current/{name}.{build.compared_key(name)}",
            update(
                [f"{build.results}/{name}{Path(path).suffix}" for path in build.compared_all(name)]
            ),
        log:
            f"logs/publish/{name}.log",
        localrule: True
        conda:
            "../envs/light.yaml"
        params:
            release=build.compared_key(name),
            prefix=f"{name}.",
        message:
            f"Publish {build.results}/{name}.json"
        script:
            "../scripts/publish.py"
