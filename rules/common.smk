# What rules take their inputs, outputs and parameters from.
from amygdala.behind import LAYERED, STAGES
from amygdala.errors import kept
from amygdala.inventory import to_repair
from amygdala.keys import key
from amygdala.reportfiles import LABELS as REPORT_LABELS


wildcard_constraints:
    key="[0-9a-f]{16}",
    shard="[0-9]+",


def get_unswept(wildcards):
    raise WorkflowError(build.unswept)


def get_final_output():
    if pinned is not None:
        return [get_pinned_marker(), *get_pinned_results()]
    if build is None or not build.layers:
        return get_nothing
    published = get_published("readout")
    return [*published, *(path for path in to_repair(build) if path not in published)]


def get_nothing(wildcards):
    raise WorkflowError(no_build if build is None else build.unswept)


def get_refused():
    """The targets that need a build, where there is none."""
    names = [*STAGES, *LAYERED, "changes", "plan", "selection", "why", "verify", "gc"]
    if pinned is not None:
        names.remove("readout")
        names += [f"emotion_{emotion}" for emotion in pinned.manifest["concepts"]]
        names += [f"layer_{layer}" for layer in pinned.manifest["layers"]]
    return names


def get_pinned_marker():
    return f"{Path(settings['results']).expanduser()}/.current/readout.{pinned.key}"


def get_pinned_results():
    """Where the stored files of the pinned release are shown, in the order of its files."""
    results = Path(settings["results"]).expanduser()
    folders = {"vectors.safetensors": "readout/", "manifest.json": "readout/"}
    return [f"{results}/{folders.get(name, '')}{name}" for name in pinned.files]


def get_recipes(wildcards):
    """What jobs write into their files. (A function, because rules work out some keys when they are read.)"""
    return build.recipe_file


def is_forced():
    return bool(workflow.dag_settings.forceall or workflow.dag_settings.forcerun)


def is_stored(path):
    try:
        return Path(path).exists()
    except PermissionError as error:
        raise WorkflowError(str(kept(path, error.strerror))) from None


def unless_stored(outputs, inputs):
    """The inputs of a job, or none where all its outputs exist.

    Existence is validity. A finished job that named an input under a new key (the snapshot, an index) would be run again by
    Snakemake, because that input is made in the same run, and ancient() covers existing files alone. Only input functions may
    call this: whether jobs are forced is not yet known when the rules are read.
    """
    if not is_forced() and all(is_stored(path) for path in outputs):
        return []
    return [ancient(path) for path in inputs]


def to_come(paths):
    """Of inputs that the job's parameters name as well, those that are yet to be made.

    Snakemake's own work grows with the inputs of all jobs, and a file that is there neither triggers a job nor keeps it waiting.
    The job needs another input beside: one without any has nothing to do (amygdala/job.py).
    """
    return [path for path in paths if is_forced() or not is_stored(path)]


def emotions_to_make(emotions, outputs_of):
    """Those of a batch's emotions that lack a file. A job makes just these, whatever else it declares."""
    return [
        emotion
        for emotion in emotions
        if is_forced() or not all(is_stored(path) for path in outputs_of(emotion))
    ]


def get_batch_inputs(emotions, outputs_of, inputs_of):
    """Input function of a batch: of the files behind the emotions that it has to make those that are yet to come."""

    def get_inputs(wildcards):
        todo = emotions_to_make(emotions, outputs_of)
        return [ancient(path) for emotion in todo for path in to_come(inputs_of(emotion))]

    return get_inputs


def get_batch_shared(emotions, outputs_of, paths):
    """Input function of a batch: files that all emotions need, where it has anything to make."""

    def get_shared(wildcards):
        return [ancient(path) for path in paths] if emotions_to_make(emotions, outputs_of) else []

    return get_shared


def get_batch_names(emotions, outputs_of):
    """Parameter of a batch: the emotions that it has to make, for the message."""

    def get_names(wildcards):
        return ", ".join(emotions_to_make(emotions, outputs_of))

    return get_names


def get_batch_files(emotions, outputs_of):
    """{emotion: its examples and the files to make of it} of a batch"""
    return {
        emotion: {"examples": build.examples(emotion), "outputs": outputs_of(emotion)}
        for emotion in emotions
    }


def get_batch_vectors(emotions, outputs_of):
    """As get_batch_files, with the emotion's vectors by layer and the names that count as its own."""
    return {
        emotion: {
            "examples": build.examples(emotion),
            "vectors": dict(zip(build.layers, build.vectors(emotion))),
            "names": build.rules.names_of(emotion),
            "outputs": outputs_of(emotion),
        }
        for emotion in emotions
    }


def get_neutral():
    """The stored neutral texts, where `denoise` asks for them."""
    return [build.texts("neutral")] if build.neutral else []


def get_neutral_path():
    return build.neutral_path


def get_digests(texts):
    return key([text.digest for text in texts])


def get_neutral_source(wildcards):
    return unless_stored([build.texts("neutral")], [build.neutral_path])


def get_unseen_sources(wildcards):
    return unless_stored([build.texts("unseen")], [one.path for one in build.unseen])


def get_no_ablation(wildcards):
    raise WorkflowError(build.no_ablation)


def get_ablation_examples(wildcards):
    return unless_stored([build.ablation], [build.examples(name) for name in build.ablated()[0]])


def get_ablation_vectors(wildcards):
    emotions, layer = build.ablated()
    return unless_stored(
        [build.ablation], [path for name in emotions for path in build.vectors(name, [layer])]
    )


def get_ablation_indices(wildcards):
    return unless_stored([build.ablation], build.indices)


def get_ablation_model(wildcards):
    return unless_stored([build.ablation], get_model_ready())


def get_ablation_files():
    emotions, layer = build.ablated()
    return {
        emotion: {
            "examples": build.examples(emotion),
            "vectors": {layer: build.vectors(emotion, [layer])[0]},
        }
        for emotion in emotions
    }


def get_no_unseen(wildcards):
    raise WorkflowError(build.no_unseen)


def get_unseen_texts(wildcards):
    return unless_stored(build.unseen_report, [build.texts("unseen")])


def get_unseen_examples(wildcards):
    return unless_stored(build.unseen_report, [build.examples(name) for name in build.emotions])


def get_unseen_index(wildcards):
    return unless_stored(build.unseen_report, build.captured(build.unseen_index_key)[:1])


def get_unseen_release(wildcards):
    return unless_stored(build.unseen_report, build.release(build.selections["readout"]))


def get_unseen_quality(wildcards):
    return unless_stored(build.unseen_report, [build.quality])


def get_compared(name):
    """Output function of a comparison: {emotion: what is measured of it}"""
    return lambda emotion: [build.compared(name, emotion)]


def get_comparison_indices(name):
    """All indices that a comparison reads."""
    return [path for paths in build.comparison_indices(name).values() for path in paths]


def get_comparison_files(name):
    """Input function: what was measured of each emotion."""

    def get_files(wildcards):
        measured = [build.compared(name, emotion) for emotion in build.emotions]
        return unless_stored(build.compared_all(name), measured)

    return get_files


def get_weights_files():
    """{layer: the model's own weights there}"""
    return dict(zip(build.layers, build.weights()))


def get_results(target):
    """Stable paths under results/ that a target publishes."""
    folder = f"{build.results}/{build.selections[target].folder}"
    files = [f"{folder}/vectors.safetensors", f"{folder}/manifest.json"]
    if target == "readout":
        files += [f"{build.results}/quality.json", f"{build.results}/overview.svg"]
    return files


def in_report(path, caption, category, label):
    """An output under results/ that `snakemake --report` shows. (A caption is looked up from the file of its rule.)"""
    caption = f"../report/{caption}.rst"
    shown = report(update(path), caption=caption, category=category, labels={"figure": label})
    return shown


def get_shown_results(target):
    """get_results as outputs."""
    picture = f"{build.results}/overview.svg"
    return [
        (
            in_report(path, "overview", "Overview", "AUC and cosines")
            if path == picture
            else update(path)
        )
        for path in get_results(target)
    ]


def get_stored(target):
    """The stored files behind get_results, in the same order."""
    files = build.release(build.selections[target])
    return files + ([build.quality, build.overview] if target == "readout" else [])


def get_published(target):
    """The marker of a target's release, and the results themselves."""
    return [build.marker(build.selections[target]), *get_results(target)]


def get_example_files(emotion):
    return [build.examples(emotion)]


def get_snapshot(emotions):
    """Input function of a batch of examples: the snapshot, where it has any to choose."""

    def get_snapshot_file(wildcards):
        return unless_stored([build.examples(emotion) for emotion in emotions], [build.snapshot])

    return get_snapshot_file


def get_graph(wildcards):
    return unless_stored([build.snapshot], build.current.graph.inputs)


def get_model_file(wildcards):
    """The model file that is converted, where it lies on this machine."""
    return unless_stored(
        [build.model_ready], [build.model.source] if build.model.kind == "gguf" else []
    )


def get_model_ready():
    """The model's marker; a model folder is used where it lies."""
    return [] if build.model.kind == "folder" else [build.model_ready]


def get_capture(wildcards):
    capture = build.captures.get(wildcards.key)
    if capture is None or capture.shard != int(wildcards.shard):
        raise WorkflowError(
            f"shard {wildcards.shard} with the key {wildcards.key} is not part of the current build"
        )
    return capture


def get_capture_examples(wildcards):
    return unless_stored(build.captured(wildcards.key), get_capture(wildcards).texts)


def get_capture_settings(wildcards):
    return {**build.capture_settings(), "check_last": get_capture(wildcards).check_last}


def get_capture_layers(wildcards):
    return list(get_capture(wildcards).layers)


def get_capture_shard(wildcards):
    return get_capture(wildcards).shard


def get_capture_shards(wildcards):
    return get_capture(wildcards).shards


def get_capture_model(wildcards):
    return unless_stored(build.captured(wildcards.key), get_model_ready())


def get_weights_model(wildcards):
    return unless_stored(build.weights(), get_model_ready())


def get_quality_files():
    """{emotion: the files behind its figures}"""
    return {
        emotion: {
            "examples": build.examples(emotion),
            "texts": build.figures(emotion)[0],
            "layers": dict(zip(build.layers, build.figures(emotion)[1:])),
            "vectors": dict(zip(build.layers, build.vectors(emotion))),
            "heads": dict(zip(build.layers, build.heads(emotion))),
        }
        for emotion in build.emotions
    }


def get_together():
    return {emotion: facts["together"] for emotion, facts in build.plan.emotions.items()}


def get_quality_inputs(wildcards):
    files = [
        path
        for emotion in build.emotions
        for path in [
            build.examples(emotion),
            *build.vectors(emotion),
            *build.heads(emotion),
            *build.figures(emotion),
        ]
    ]
    return unless_stored([build.quality], to_come(files))


def get_quality_indices(wildcards):
    return unless_stored([build.quality], build.indices)


def get_overview_vectors(wildcards):
    return unless_stored([build.overview], build.release(build.selections["readout"])[:1])


def get_overview_manifest(wildcards):
    return unless_stored([build.overview], build.release(build.selections["readout"])[1:])


def get_overview_quality(wildcards):
    return unless_stored([build.overview], [build.quality])


def get_release(wildcards):
    if wildcards.key not in build.releases:
        raise WorkflowError(f"the release {wildcards.key} is not part of the current build")
    return build.releases[wildcards.key]


def get_release_vectors(wildcards):
    chosen = get_release(wildcards)
    files = [path for emotion in chosen.emotions for path in build.vectors(emotion, chosen.layers)]
    return unless_stored(build.release(chosen), to_come(files))


def get_release_snapshot(wildcards):
    """What `changes` compares the next build with. Examples that are stored already would not have it made."""
    return unless_stored(build.release(get_release(wildcards)), [build.snapshot])


def get_release_indices(wildcards):
    return unless_stored(build.release(get_release(wildcards)), build.indices)


def get_vector_files(wildcards):
    chosen = get_release(wildcards)
    return {
        emotion: dict(zip(chosen.layers, build.vectors(emotion, chosen.layers)))
        for emotion in chosen.emotions
    }


def get_built_files():
    """{emotion: its vectors and head figures}"""
    return {emotion: [*build.vectors(emotion), *build.heads(emotion)] for emotion in build.emotions}


def get_all_counts():
    return {emotion: facts["counts"] for emotion, facts in build.plan.emotions.items()}


def get_counts(wildcards):
    return {
        emotion: build.plan.emotions[emotion]["counts"]
        for emotion in get_release(wildcards).emotions
    }


def get_origin(wildcards):
    """What a release's manifest says for whoever makes it again, beside the settings."""
    chosen = get_release(wildcards)
    return {
        "vectors": {emotion: build.vector_keys[emotion] for emotion in chosen.emotions},
        "code": build.readout_code(chosen),
        "reproduce": build.reproducing(),
    }


def get_release_layers(wildcards):
    return get_release(wildcards).layers


# The report


def get_report_texts():
    """{emotion: its examples, and its vectors by layer}"""
    return {
        emotion: {
            "examples": build.examples(emotion),
            "vectors": dict(zip(build.layers, build.vectors(emotion))),
        }
        for emotion in build.emotions
    }


def get_report_heads():
    """{emotion: {layer: its head figures}}"""
    return {emotion: dict(zip(build.layers, build.heads(emotion))) for emotion in build.emotions}


def get_token_files(wildcards):
    files = [[build.examples(e), *build.vectors(e)] for e in build.emotions]
    return unless_stored([build.token_scores], [path for paths in files for path in paths])


def get_token_quality(wildcards):
    return unless_stored([build.token_scores], [build.quality])


def get_token_indices(wildcards):
    return unless_stored([build.token_scores], build.indices)


def get_token_model(wildcards):
    return unless_stored([build.token_scores], get_model_ready())


def get_report_release(wildcards):
    return unless_stored(build.report, build.release(build.selections["readout"]))


def get_report_quality(wildcards):
    return unless_stored(build.report, [build.quality])


def get_report_tokens(wildcards):
    return unless_stored(build.report, [build.token_scores])


def get_report_head_files(wildcards):
    return unless_stored(build.report, [path for e in build.emotions for path in build.heads(e)])


def get_shown_report():
    """The published report as outputs."""
    names = [(path, Path(path).stem) for path in build.published_report]
    return [in_report(path, name, "Report", REPORT_LABELS[name]) for path, name in names]
