"""PyTorch: its tensors in the typed tree, its modules, optimizers and random generators as state.

Never imports torch by itself: the adapter exists only when the script has imported it.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Sequence

from .arrays import numpy_module
from .errors import UnsupportedStateError
from .loading import load_tensors, loads_as_torch_does
from .objects import GeneratorHandler, StateHandler, compare_arrays
from .optimizers import OptimizerHandler
from .sharded import is_sharded, local_of, locals_of, may_be_sharded, place_of, places_of
from .tensors import bytes_of, is_plain, torch_module, view_of
from .tree import TAG, Codec, Fill, Leaf
from .watching import ModuleWatch, OptimizerWatch, TensorWatch, UnwatchableError, Watch

# torch's name → the name of the element type in slots and checkpoints: safetensors' names as far as it has
# one
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "complex64": "C64", "complex128": "C128", "complex32": "C32",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0", "float4_e2m1fn_x2": "F4_E2M1X2",
}  # fmt: skip


class TensorCodec(Codec):
    tags = ("tensor", "torch.Size", "torch.dtype", "torch.device")

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._by_torch = {
            getattr(torch, name): plain for name, plain in _DTYPES.items() if hasattr(torch, name)
        }
        self.names = frozenset(_DTYPES)
        self._by_plain = {plain: dtype for dtype, plain in self._by_torch.items()}

    def leaf(self, value: Any, path: str) -> Leaf | None:
        torch = self._torch
        if not isinstance(value, torch.Tensor):
            return None
        if is_sharded(value):
            piece = self.leaf(local_of(value), path)
            assert piece is not None
            return piece._replace(whole=place_of(value, path), node={**piece.node, "sharded": True})
        plain = self._refuse_unless_plain(value, path)
        tensor = value.detach()
        size_bytes = tensor.numel() * tensor.element_size()
        node: dict[str, Any] = {TAG: "tensor"}
        if tensor.device.type != "cpu":
            node["device"] = tensor.device.type
        if not tensor.is_contiguous() and _is_dense(tensor):
            node["stride"] = list(tensor.stride())
        identity = None
        if size_bytes:
            place = (str(tensor.device), tensor.data_ptr(), tensor.is_conj(), tensor.is_neg())
            identity = ("torch", place, plain, tuple(tensor.shape), tensor.stride())
        plain_bytes = _plain_bytes(torch, tensor) if size_bytes and is_plain(tensor) else None
        copy_to = _copier(torch, tensor)
        return Leaf(plain, tuple(tensor.shape), size_bytes, identity, node, copy_to, plain_bytes)

    def _refuse_unless_plain(self, value: Any, path: str) -> str:
        torch = self._torch
        if type(value) not in (torch.Tensor, torch.nn.Parameter, getattr(torch.nn, "Buffer", torch.Tensor)):
            why = f"a tensor of type {type(value).__module__}.{type(value).__qualname__}"
            if isinstance(value, torch.nn.parameter.UninitializedTensorMixin):
                why = "a parameter of a lazy module that has not run yet"
        elif value.layout != torch.strided:
            why = f"a tensor of layout {value.layout}"
        elif value.is_quantized:
            why = "a quantised tensor"
        elif value.device.type == "meta":
            why = "a tensor on the meta device, which has no values"
        elif value.dtype not in self._by_torch:
            why = f"a tensor of dtype {value.dtype}"
        else:
            return self._by_torch[value.dtype]
        raise UnsupportedStateError(
            f"{path}: a checkpoint cannot hold {why}; keep a plain dense tensor instead"
        )

    def node(self, value: Any) -> dict[str, Any] | None:
        torch = self._torch
        if isinstance(value, torch.Size):
            return {TAG: "torch.Size", "v": list(value)}
        if isinstance(value, torch.dtype):
            return {TAG: "torch.dtype", "v": str(value)[len("torch.") :]}
        if isinstance(value, torch.device):
            return {TAG: "torch.device", "v": str(value)}
        return None

    def make(
        self, node: dict[str, Any], data: memoryview | None, dtype: str, shape: tuple[int, ...], fill: Fill
    ) -> Any:
        torch, tag = self._torch, node[TAG]
        if tag == "torch.Size":
            return torch.Size(node["v"])
        if tag == "torch.dtype":
            return getattr(torch, node["v"])
        if tag == "torch.device":
            return torch.device(node["v"])
        assert data is not None
        made = torch.empty(tuple(shape), dtype=self._dtype(dtype))
        if "stride" in node:
            made = torch.empty_strided(tuple(shape), tuple(node["stride"]), dtype=made.dtype)
            made.copy_(view_of(torch, data, made.dtype, shape))
        elif data.nbytes and numpy_module() is not None:
            fill(made.reshape(-1).view(torch.uint8).numpy(), data)
        elif data.nbytes:
            made.copy_(view_of(torch, data, made.dtype, shape))
        return self._placed(made, node)

    def borrow(self, node: dict[str, Any], data: memoryview, dtype: str, shape: tuple[int, ...]) -> Any:
        if node[TAG] != "tensor":
            return None
        torch = self._torch
        if not data.nbytes:
            return self._placed(torch.empty(tuple(shape), dtype=self._dtype(dtype)), node)
        return self._placed(view_of(torch, data, self._dtype(dtype), shape), node)

    def _dtype(self, plain: str) -> Any:
        if plain not in self._by_plain:
            raise ValueError(
                f"the checkpoint holds a tensor of dtype {plain}, which torch {self._torch.__version__} lacks"
            )
        return self._by_plain[plain]

    def _placed(self, tensor: Any, node: dict[str, Any]) -> Any:
        if "sharded" in node:
            tensor.orch_sharded = True  # one rank's piece
        if "device" in node:
            tensor.orch_device = node["device"]  # where it lived; who loads it decides what that means
        return tensor


def _is_dense(tensor: Any) -> bool:
    """Whether the strides are a permutation of contiguous ones (channels_last, a transposed matrix)."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _plain_bytes(torch: Any, tensor: Any) -> Callable[[], Any] | None:
    return None if numpy_module() is None else lambda: bytes_of(torch, tensor)


def _copier(torch: Any, tensor: Any) -> Callable[[memoryview], None]:
    def copy_to(target: memoryview) -> None:
        if target.nbytes:
            view_of(torch, target, tensor.dtype, tensor.shape).copy_(tensor)

    return copy_to


class ModuleHandler(StateHandler):
    """A torch.nn.Module; loaded strictly, after names, shapes and dtypes were compared."""

    kind = "module"
    order = 0

    def places(self) -> list[dict[str, Any]]:
        return places_of(self.target.state_dict(), self.name) if may_be_sharded() else []

    def problems(self, stored: Any) -> list[str]:
        return compare_arrays(self.name, stored, locals_of(self.target.state_dict()))

    def restore_in_place(self, borrowed: Any) -> bool:
        torch = torch_module()
        live = self.target.state_dict()
        divided = any(map(is_sharded, live.values()))
        if not divided and not loads_as_torch_does(torch, self.target):
            return False
        live = locals_of(live)  # of a divided module each rank fills its own pieces, where they are
        load_tensors(torch, [(live[key], value) for key, value in borrowed.items()])
        return True

    def by_name(self, stored: Any) -> dict[str, Any] | None:
        state = locals_of(self.target.state_dict()) if stored is None else stored
        return {name: value for name, value in state.items() if hasattr(value, "shape")}

    def put_by_name(self, tensors: dict[str, Any]) -> None:
        live = self.target.state_dict()
        if any(map(is_sharded, live.values())) or loads_as_torch_does(torch_module(), self.target):
            own = locals_of(live)
            pairs = [(own[name], value.to(own[name].dtype)) for name, value in tensors.items()]
            load_tensors(torch_module(), pairs)
        else:
            self.target.load_state_dict({**live, **tensors})


class TensorHandler(StateHandler):
    """A tensor or parameter given by itself; loaded in place."""

    kind = "tensor"
    order = 0

    def places(self) -> list[dict[str, Any]]:
        return places_of({"": self.target}, self.name)

    def capture(self) -> Any:
        return self.target.detach()

    def problems(self, stored: Any) -> list[str]:
        return compare_arrays(self.name, {"": stored}, {"": local_of(self.target)})

    def restore_in_place(self, borrowed: Any) -> bool:
        load_tensors(torch_module(), [(local_of(self.target), borrowed)])
        return True


class TorchGeneratorHandler(GeneratorHandler):
    """A torch.Generator."""

    kind = "torch.Generator"

    def capture(self) -> Any:
        return self.target.get_state()

    def restore(self, stored: Any) -> None:
        self.target.set_state(stored)

    def reseed(self, seed: int) -> None:
        self.target.manual_seed(seed)


class TorchAdapter:
    """Everything the rest of the training side wants to know of torch."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.codec: Codec = TensorCodec(torch)
        self.framework = ("torch", str(torch.__version__))

    def handler(self, name: str, value: Any, everything: dict[str, Any]) -> StateHandler | None:
        torch = self._torch
        if isinstance(value, torch.nn.Module):
            return ModuleHandler(name, value)
        if isinstance(value, torch.optim.Optimizer):
            modules = {key: other for key, other in everything.items() if isinstance(other, torch.nn.Module)}
            loose = {key: other for key, other in everything.items() if isinstance(other, torch.nn.Parameter)}
            return OptimizerHandler(name, value, modules, loose)
        if isinstance(value, torch.Tensor):
            return TensorHandler(name, value)
        if isinstance(value, torch.Generator):
            return TorchGeneratorHandler(name, value)
        return None

    def watches(self, handlers: Sequence[StateHandler]) -> list[Watch]:
        """Guards for those whose state is torch's own to save."""
        torch = self._torch
        made: dict[str, Watch] = {}
        for handler in sorted(handlers, key=lambda handler: handler.order):  # modules before optimizers
            with contextlib.suppress(UnwatchableError):
                if type(handler) is ModuleHandler:
                    made[handler.name] = ModuleWatch(torch, handler.name, handler.target)
                elif type(handler) is TensorHandler:
                    made[handler.name] = TensorWatch(torch, handler.name, handler.target)
                elif type(handler) is OptimizerHandler:
                    naming = [made.get(name) for name in handler.modules]
                    known = all(
                        isinstance(watch, ModuleWatch) and watch.names_as_torch_does for watch in naming
                    )
                    made[handler.name] = OptimizerWatch(torch, handler, names_are_fixed=known)
        return [made[handler.name] for handler in handlers if handler.name in made]

    def capture_random(self) -> dict[str, Any]:
        torch = self._torch
        found: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found["cuda"] = torch.cuda.get_rng_state_all()
        return found

    def restore_random(self, stored: dict[str, Any]) -> str | None:
        """Returns what could not be restored, as a sentence."""
        torch = self._torch
        torch.set_rng_state(stored["cpu"])
        cuda = stored.get("cuda")
        if not cuda:
            return None
        if not torch.cuda.is_available() or torch.cuda.device_count() < len(cuda):
            return f"the random states of {len(cuda)} CUDA devices are stored, and fewer are visible here"
        torch.cuda.set_rng_state_all(cuda)
        return None

    def capture_random_host(self) -> Any:
        return self._torch.get_rng_state()

    def restore_random_host(self, stored: Any) -> None:
        self._torch.set_rng_state(stored)

    def seed_host(self, seed: int) -> None:
        self._torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the devices too

    def seed_devices(self, seed: int) -> None:
        torch = self._torch
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)

    def draw_seed_host(self) -> int:
        return int(self._torch.randint(0, 1 << 62, ()).item())
