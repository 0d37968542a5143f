# No build (a stored release is shown, or the graph is not to be had): whatever needs one says why.
for name in get_refused():

    rule:
        name:
            name
        input:
            get_nothing,
