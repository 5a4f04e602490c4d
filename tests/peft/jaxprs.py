"""What a traced function does."""


def equations(jaxpr):
    """All equations of a closed jaxpr, those of its loops, branches and calls among them."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def made_shapes(jaxpr):
    """Shapes that equations make: of any array; and of products contracted over rows."""
    made, products = set(), set()
    for eqn in equations(jaxpr):
        shapes = {v.aval.shape for v in eqn.outvars}
        made.update(shapes)
        if eqn.primitive.name == "dot_general":
            (left, right), _ = eqn.params["dimension_numbers"]
            if len(left) > 1 and 0 in left and 0 in right:  # over the rows of a batch
                products.update(shapes | _unordered(shapes))
    return made, products


def _unordered(shapes):
    """A weight's gradient may be made output axes first."""
    return {shape[-n:] + shape[:-n] for shape in shapes for n in range(1, len(shape))}
