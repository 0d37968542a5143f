rule verify:
    log:
        "logs/verify.log",
    conda:
        "../envs/light.yaml"
    params:
        home=str(build.home),
        sheet=get_recipes,
    message:
        "Check of all files of the release"
    script:
        "../scripts/verify.py"
