# What the top heads of an emotion carry: they are taken out of a forward pass of the held-out texts.
if build.no_ablation:

    rule ablation:
        input:
            get_no_ablation,

else:

    rule ablate_heads:
        input:
            examples=get_ablation_examples,
            vectors=get_ablation_vectors,
            indices=get_ablation_indices,
            model=get_ablation_model,
        output:
            update(build.ablation),
        log:
            "logs/ablation.log",
        conda:
            "../envs/model.yaml"
        threads: 32
        resources:
            **get_gpu_resources(get_model_runtime),
        params:
            model=vars(build.model),
            settings=build.capture_settings(),
            files=get_ablation_files(),
            layer=build.ablated()[1],
            captured=build.layers,
            pooling=build.poolings[0],
            k=build.config["ablation"]["heads"],
            random=build.config["ablation"]["random"],
            fill=build.config["ablation"]["fill"],
            recipes=get_recipes,
        message:
            "Ablation of heads up to layer {params.layer}"
        script:
            "../scripts/ablation.py"

    rule ablation:
        input:
            ancient(build.ablation),
        output:
            f"{build.results}/.current/ablation.{build.ablation_key}",
            update(f"{build.results}/ablation.json"),
        log:
            "logs/publish/ablation.log",
        localrule: True
        conda:
            "../envs/light.yaml"
        params:
            release=build.ablation_key,
            prefix="ablation.",
        message:
            f"Publish {build.results}/ablation.json"
        script:
            "../scripts/publish.py"
