"""The two graphs of a compiled student: what torch traces, and what is changed in OpenVINO's form.

Imports torch and transformers: import it inside functions. Belongs here: graphs. Does not belong
here: their proof and place (`engine_conversion`), running them (`openvino_engine`).
"""

from typing import Any

import numpy as np
import openvino
import torch  # noqa: TID253 - defines what is traced; imported by `engine_conversion` in functions
from openvino import opset13, passes
from transformers.cache_utils import Cache, DynamicLayer  # noqa: TID253

from serving.models.openvino_engine import EnginePlan

FIRST_PAST = 3  # ids, mask and positions come before the keys and values
EIGHT_BITS = 127


class _NewLayer(DynamicLayer):  # type: ignore[misc]
    """Keeps what it is given: without a past nothing is joined, which a tracer could not follow."""

    def update(
        self, key_states: "torch.Tensor", value_states: "torch.Tensor", *_: Any, **__: Any
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states


class ReadPrefix(torch.nn.Module):
    """Ids and positions [1, tokens] to keys and values [2, layers, heads, tokens, head size]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.get_decoder()
        self.layers = model.config.get_text_config().num_hidden_layers

    def forward(self, input_ids: "torch.Tensor", position_ids: "torch.Tensor") -> "torch.Tensor":
        """Run the decoder."""
        cache = Cache(layers=[_NewLayer() for _ in range(self.layers)])
        self.decoder(
            input_ids=input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        keys = torch.cat([layer.keys for layer in cache.layers])
        return torch.stack([keys, torch.cat([layer.values for layer in cache.layers])])


class Step(torch.nn.Module):
    """Ids, what is added to scores, positions and a past to the last logits and a longer past."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.head = model.get_decoder(), model.get_output_embeddings()

    def forward(
        self,
        input_ids: "torch.Tensor",
        mask: "torch.Tensor",
        position_ids: "torch.Tensor",
        past: "list[torch.Tensor]",
    ) -> "tuple[torch.Tensor, ...]":
        """Run the decoder, and the head on the last token alone."""
        cache = Cache(
            layers=[_fill_layer(*pair) for pair in zip(past[::2], past[1::2], strict=True)]
        )
        hidden = self.decoder(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        states = [states for layer in cache.layers for states in (layer.keys, layer.values)]
        return (self.head(hidden[:, -1:])[:, 0], *states)


def _fill_layer(keys: "torch.Tensor", values: "torch.Tensor") -> Any:
    layer = DynamicLayer()
    layer.keys, layer.values, layer.is_initialized = keys, values, True
    layer.dtype, layer.device = keys.dtype, keys.device
    return layer


def keep_states(graph: "openvino.Model", plan: EnginePlan) -> "openvino.Model":
    """Make the past of a traced `Step` the graph's own, chosen by row through `beam_idx`.

    The processor then writes new keys and values in place. A request begins with an empty past.
    """
    past, present = graph.get_parameters()[FIRST_PAST:], graph.get_results()[1:]
    for number, name in enumerate(("input_ids", "mask", "position_ids")):
        graph.inputs[number].get_tensor().set_names({name})
    chosen = opset13.parameter([-1], np.int32, name="beam_idx")
    chosen.output(0).get_tensor().set_names({"beam_idx"})
    graph.add_parameters([chosen])
    pairs = {}
    for number, (old, new) in enumerate(zip(past, present, strict=True)):
        old.set_partial_shape(openvino.PartialShape([-1, plan.heads, -1, plan.head_size]))
        old.output(0).get_tensor().set_names({f"past.{number}"})
        new.output(0).get_tensor().set_names({f"present.{number}"})
        readers = old.output(0).get_target_inputs()
        rows = opset13.gather(old, chosen, opset13.constant(np.int64(0)))
        for reader in readers:
            reader.replace_source_output(rows.output(0))
        pairs[f"past.{number}"] = f"present.{number}"
    graph.validate_nodes_and_infer_types()
    manager = passes.Manager()
    manager.register_pass(passes.MakeStateful(pairs))
    manager.run_passes(graph)
    return _begin_empty(graph, plan)


def _begin_empty(graph: "openvino.Model", plan: EnginePlan) -> "openvino.Model":
    """Let every state begin with no tokens, for as many rows as are asked."""
    ids = graph.input("input_ids").get_node()
    batch = opset13.gather(
        opset13.shape_of(ids, output_type="i64"), opset13.constant([0]), opset13.constant(0)
    )
    sizes = [opset13.constant([size]) for size in (plan.heads, 0, plan.head_size)]
    empty = opset13.broadcast(
        opset13.constant(np.float32(0)), opset13.concat([batch, *sizes], axis=0)
    )
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty])
    graph.validate_nodes_and_infer_types()
    return graph


def round_weights(graph: "openvino.Model") -> int:
    """Round every weight matrix to 8 bits with a scale for each output; return how many there are.

    The form is the one that OpenVINO multiplies without making it wide again.
    """
    count = 0
    for node in graph.get_ops():
        weight = _find_weight(node)
        if weight is None:
            continue
        values = weight.data.astype(np.float32)
        scale = np.abs(values).max(axis=1, keepdims=True) / EIGHT_BITS
        scale[scale == 0] = 1
        small = opset13.constant(np.rint(values / scale).astype(np.int8))
        wide = opset13.convert(small, np.float32)
        scaled = opset13.multiply(wide, opset13.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(scaled.output(0))
        count += 1
    graph.validate_nodes_and_infer_types()
    return count


def _find_weight(node: Any) -> Any:
    """Return the constant [out, in] a node multiplies by, or None."""
    if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
        return None
    weight = node.input_value(1).get_node()
    is_matrix = weight.get_type_name() == "Constant" and len(weight.shape) == 2
    return weight if is_matrix else None
