"""Which operations a SavedModel may contain: a model is a program, and TensorFlow is no sandbox.

Read from the protocol buffer, before TensorFlow makes anything of it. Pure functions of tensors that TensorFlow itself
registers are allowed, and of those with a state what models are made of: variables, tables, control flow, random
numbers. What calls Python, touches files, talks to devices or other machines, or is nobody's known operation is not.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow.core.framework import node_def_pb2, op_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.client import pywrap_tf_session

from serving.server.errors import Code, RequestError

_STATEFUL = re.compile(
    r"(Read|Assign(Add|Sub)?)VariableOp|VarHandleOp|VarIsInitializedOp|Variable(V2|Shape)?|DestroyResourceOp|"
    r"Resource(Gather(Nd)?|Scatter\w*|StridedSliceAssign)|DisableCopyOnRead|IsResourceHandleRefCounting|"
    r"(Anonymous)?(Mutable(Dense)?)?HashTable(OfTensors)?(V2)?|LookupTable\w+V2|InitializeTable(FromTextFile)?V2|"
    r"StatefulPartitionedCall|If|While|Case|Assert|TensorArray\w*|Stack\w*|Empty|CheckNumerics(V2)?|GuaranteeConst|"
    r"Random\w+|Stateful(Standard|Truncated|Uniform|Random)\w*|StatelessRandomGetAlg|TruncatedNormal|Multinomial|"
    r"ParameterizedTruncatedNormal|Rng(ReadAnd)?Skip|SampleDistortedBoundingBox(V2)?|CudnnRNN(V[23])?|DeviceIndex"
)
_NEITHER = re.compile(
    r"\w*(PyFunc|Dataset|Summary|Debug|Remote|TPU|Tpu|XlaCustomCall|Reader|Queue|Barrier)\w*|XlaSparse\w*|"
    r"(Matching|Read)Files?|GenerateVocabRemapping|(Decode|Encode)Proto(V2)?|Restore\w*|Save\w*|Copy(Host)?|"
    r"CustomAggregator|_(Copy|Host)\w+"
)
_SAVER = re.compile(r"SaveV2|RestoreV2|MergeV2Checkpoints")
_TEXT_FILE = re.compile(r"InitializeTableFromTextFile(V2)?")


def scan(version: Path) -> None:
    """Raises RequestError(PERMISSION_DENIED) naming the first operation that is not allowed, and where it stands."""
    for path in (version.parent, version, *sorted(version.rglob("*"))):
        if path.is_symlink():
            raise _denied(f"{path}: a link, which could lead anywhere,")
    for other in ("saved_model.cpb", "saved_model.pbtxt"):
        if (version / other).exists():  # TensorFlow would read these instead
            raise _denied(f"{other}, a second form of the graph,")
    try:
        model = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise RequestError(Code.DATA_LOSS, f"{version / 'saved_model.pb'}: {error}", private=True) from None
    for graph in model.meta_graphs:
        _scan_graph(graph)


def _scan_graph(graph: meta_graph_pb2.MetaGraphDef) -> None:
    bodies = {"": graph.graph_def.node} | {f.signature.name: f.node_def for f in graph.graph_def.library.function}
    served = _reached(graph, bodies)
    for function, nodes in bodies.items():
        for node in nodes:
            saver = _SAVER.fullmatch(node.op) and function not in served and (function or node.name not in served[""])
            if not (saver or node.op in bodies or _is_allowed(node.op)):
                raise _denied(f"operation {node.op} ({f'{function}/' if function else ''}{node.name})")
    for asset in graph.asset_file_def:
        if not re.fullmatch(r"(?!\.\.)[^/\\\0]+", asset.filename):
            raise _denied(f"asset {asset.filename!r}: a name without folders was expected")
    _check_text_files(graph, bodies)


@functools.cache
def _is_allowed(op: str) -> bool:
    stateful = _registered().get(op)
    if stateful is None or _NEITHER.fullmatch(op):
        return False
    return not stateful or _STATEFUL.fullmatch(op) is not None


@functools.cache
def _registered() -> Mapping[str, bool]:
    """Every operation that this process knows, and whether it has a state."""
    ops = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    return {op.name: op.is_stateful for op in ops.op}


Bodies = Mapping[str, Iterable[node_def_pb2.NodeDef]]


def _reached(graph: meta_graph_pb2.MetaGraphDef, bodies: Bodies) -> dict[str, set[str]]:
    """What signatures and initialisation run: the nodes of the main graph under "", and every function called."""
    nodes = {node.name: node for node in bodies[""]}
    roots = {info.name for signature in graph.signature_def.values() for info in signature.outputs.values()}
    for key in ("saved_model_main_op", "main_op", "legacy_init_op"):
        roots.update(graph.collection_def[key].node_list.value if key in graph.collection_def else ())
    seen: set[str] = set()
    waiting = [_node_name(root) for root in roots]
    functions: list[str] = []
    while waiting:
        name = waiting.pop()
        if name in nodes and name not in seen:
            seen.add(name)
            waiting.extend(map(_node_name, nodes[name].input))
            functions.extend(_called(nodes[name]))
    reached: dict[str, set[str]] = {"": seen}
    while functions:
        function = functions.pop()
        if function in bodies and function not in reached:
            reached[function] = set()
            functions.extend(called for node in bodies[function] for called in _called(node))
    return reached


def _called(node: node_def_pb2.NodeDef) -> Iterator[str]:
    yield node.op  # the name of a function may stand there
    for attr in node.attr.values():
        if attr.HasField("func"):
            yield attr.func.name
        yield from (func.name for func in attr.list.func)


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


def _check_text_files(graph: meta_graph_pb2.MetaGraphDef, bodies: Bodies) -> None:
    """A table may be filled from an asset of the version, not from any file that the graph can name."""
    assets = {_node_name(asset.tensor_info.name) for asset in graph.asset_file_def}
    arguments = {f.signature.name: [a.name for a in f.signature.input_arg] for f in graph.graph_def.library.function}
    waiting = [
        (function, _node_name(node.input[1]), node.name)
        for function, nodes in bodies.items()
        for node in nodes
        if _TEXT_FILE.fullmatch(node.op)
    ]
    seen = set()
    while waiting:
        function, source, where = step = waiting.pop()
        if step in seen:
            continue
        seen.add(step)
        if function and source in arguments[function]:  # whatever its callers give
            index = arguments[function].index(source)
            waiting += [
                (caller, _node_name(node.input[index]), where)
                for caller, nodes in bodies.items()
                for node in nodes
                if function in _called(node)
            ]
            continue
        node = next((node for node in bodies[function] if node.name == source), None)
        if node is not None and node.op == "Identity":
            waiting.append((function, _node_name(node.input[0]), where))
        elif node is not None and node.op == "ReadVariableOp" and not function:
            waiting += [("", source, where) for source in _assigned(node, bodies)]
        elif function or source not in assets:
            raise _denied(f"operation InitializeTableFromTextFile ({where}) reads a file that is no asset")


def _assigned(read: node_def_pb2.NodeDef, bodies: Bodies) -> Iterator[str]:
    """What the variable is assigned that a node of the main graph reads; something unnamed when that is not certain."""
    handles = [node for node in bodies[""] if node.op == "VarHandleOp"]
    shared = {node.attr["shared_name"].s for node in handles if node.name == _node_name(read.input[0])}
    names = {node.name for node in handles if node.attr["shared_name"].s in shared}
    for function, nodes in bodies.items():
        for node in nodes:
            if function and node.op == "VarHandleOp" and node.attr["shared_name"].s in shared:
                yield ""
            if not function and names & set(map(_node_name, node.input)):
                if node.op == "AssignVariableOp":
                    yield _node_name(node.input[1])
                elif node.op not in ("ReadVariableOp", "VarIsInitializedOp"):
                    yield ""


def _denied(what: str) -> RequestError:
    return RequestError(
        Code.PERMISSION_DENIED, f"{what} is not allowed in a model under --profile=hardened", private=True
    )
