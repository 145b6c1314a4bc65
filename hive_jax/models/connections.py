"""Which decoder layer attends to which encoder depth: the default, and the checks.

A connection is a pair (encoder depth, decoder layer), both counted from 1.
"""

from hive_jax.models.fusion_kinds import Connections, fusion_kind


def block_number(number: int, depth: int, key: str) -> int:
    """Returns the number of an encoder block, counted from 1.

    Args:
      number: 1 to `depth`; -1 for the last block, -2 for the one before it, and so on;
        0 for the last.
      depth: number of encoder layers.
      key: config key of the number, for the message.

    Raises:
      ValueError: no such block.
    """
    if abs(number) > depth:
        raise ValueError(
            f"{key} is {number}; expected 1 to {depth}, -1 to -{depth} from the end, or "
            "0 for the last block"
        )
    return number if number > 0 else depth + 1 + (number or -1)


def default_connections(
    encoder_depth: int, decoder_depth: int, count: int = 0, deepest: int = 0
) -> Connections:
    """Connects evenly spaced encoder depths to evenly spaced decoder layers.

    The deepest depth and the last layer are always included.

    default_connections(24, 26) ->
        ((4, 4), (8, 9), (12, 13), (16, 17), (20, 22), (24, 26))

    Args:
      encoder_depth: number of encoder layers.
      decoder_depth: number of decoder layers.
      count: number of connections; 0 for 25 % of the encoder's layers, as in the paper.
      deepest: last encoder depth to connect; 0 for the last layer.
    """
    deepest = deepest or encoder_depth
    # A decoder with few layers limits the number: each layer has one connection at most.
    count = count or max(1, min(round(encoder_depth / 4), deepest, decoder_depth))

    def spaced(depth):
        # i + 1, because depths count from 1 and the deepest one is included.
        return [round((i + 1) * depth / count) for i in range(count)]

    return tuple(zip(spaced(deepest), spaced(decoder_depth), strict=True))


def resolve_connections(
    fusion: str,
    connections: Connections,
    encoder_depth: int,
    decoder_depth: int,
    count: int = 0,
    feature_depth: int = 0,
) -> Connections:
    """Returns the connections of a model, checked against both towers.

    Args:
      fusion: a key of FUSIONS.
      connections: pairs, or () for `default_connections`.
      encoder_depth: number of encoder layers.
      decoder_depth: number of decoder layers.
      count: number of default connections; 0 for 25 % of the encoder's layers.
      feature_depth: deepest block to read, see `block_number`.

    Raises:
      ValueError: unknown fusion, a pair outside of the towers, or decoder layers that do
        not increase.
    """
    kind = fusion_kind(fusion)
    if not kind.uses_image:
        return ()
    deepest = block_number(feature_depth, encoder_depth, "feature_depth")
    if not 0 <= count <= min(deepest, decoder_depth):
        raise ValueError(
            f"num_connections is {count}; expected at most the number of encoder "
            f"depths, {deepest}, and of decoder layers, {decoder_depth}"
        )
    pairs = connections or default_connections(
        encoder_depth, decoder_depth, count, deepest
    )
    pairs = tuple((int(depth), int(layer)) for depth, layer in pairs)
    for depth, layer in pairs:
        if not (1 <= depth <= deepest and 1 <= layer <= decoder_depth):
            limit = "" if deepest == encoder_depth else ", as feature_depth limits it,"
            raise ValueError(
                f"connection ({depth}, {layer}): expected an encoder depth of 1 to "
                f"{deepest}{limit} and a decoder layer of 1 to {decoder_depth}"
            )
    # Decoder layers run in this order, once each. Encoder depths may come in any order.
    layers = [layer for _, layer in pairs]
    if layers != sorted(set(layers)):
        raise ValueError(f"connected decoder layers {layers} must increase")
    return kind.connect(pairs, deepest)
