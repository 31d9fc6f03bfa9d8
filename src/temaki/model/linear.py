"""How matrices lie in memory, for decoding: a single row reads every weight once, so reading is all there is."""

from typing import TypeVar

from torch import nn

from temaki.model.part import Part

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def lengthwise(model: AnyModel) -> AnyModel:
    """Lay every tall matrix [R, D], R > D, of a model on the host by columns; shapes, names and values stay.

    Longer runs of memory are read faster: one row through SmolLM2's matrices takes a tenth less time, many rows as
    long as before (float32), a lookup of 512 embeddings 6 ms more. For models that are only read from now on. Needs
    room for one more matrix meanwhile.

    >>> import torch
    >>> from temaki.base.roles import Role
    >>> part = Part()
    >>> _ = part.add("up", 3, 2, role=Role("matrix"), filling="given", value=torch.arange(6.0).view(3, 2))
    >>> lengthwise(part).up.stride(), part.up[1].tolist()
    ((1, 3), [2.0, 3.0])
    """
    for part in model.modules():
        names = part.own_roles if isinstance(part, Part) else ()
        for weight in map(part.get_parameter, names):
            tall = weight.dim() == 2 and weight.shape[0] > weight.shape[1]
            if tall and weight.device.type == "cpu" and weight.is_contiguous():
                weight.data = weight.data.t().contiguous().t()
    return model
