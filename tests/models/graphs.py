"""What a compiled function does, op by op."""

from collections.abc import Iterator

import tensorflow as tf


def operations(function) -> Iterator[tf.Operation]:
    """The operations of a concrete function and of every function that it calls."""
    graphs, seen = [function.graph], set()
    while graphs:
        graph = graphs.pop()
        for operation in graph.get_operations():
            yield operation
            for attribute in operation.node_def.attr.values():
                names = [attribute.func.name, *(call.name for call in attribute.list.func)]
                for name in set(names) - seen - {""}:
                    seen.add(name)
                    graphs.append(graph._get_function(name).graph)
