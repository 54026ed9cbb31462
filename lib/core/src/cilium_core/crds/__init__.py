"""Custom resource definitions, made from the models that check the objects.

    schemas        JSON schemas of models in the form that Kubernetes asks for
    definitions    what each definition says beside its schema: names, scope, columns
    __main__       writes them as YAML: `python -m cilium_core.crds FOLDER`

Only the build and tests use this package.
"""
