# `target_layers: auto` and no sweep yet: whatever needs layers says what to do.
for name in [
    *("weights", "vectors", "heads", "quality", "readout", "changes", "plan"),
    *("compare", "ablation", "unseen", "report", "verify"),
    *(f"emotion_{emotion}" for emotion in build.emotions),
    *(f"layer_{layer}" for layer in build.all_layers),
]:

    rule:
        name:
            name
        input:
            get_unswept,
