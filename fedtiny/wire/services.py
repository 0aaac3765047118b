"""The gRPC services by name, as the protos have them: who serves them, and who calls them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from google.protobuf.message_factory import GetMessageClass

from fedtiny.errors import WireError
from fedtiny.wire.checks import parse
from fedtiny.wire.pb import admin_pb2, fleet_pb2

if TYPE_CHECKING:
    import grpc

Service = Any
"""A descriptor: `full_name`, and `methods` with the messages that they take and give."""

FLEET: Service = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"]
ENROLMENT: Service = fleet_pb2.DESCRIPTOR.services_by_name["Enrolment"]
OPERATOR: Service = admin_pb2.DESCRIPTOR.services_by_name["Operator"]


def snake_case(method: str) -> str:
    """``check_in`` of ``CheckIn``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()


def handler(
    service: Service, servicer: object, told: Callable[[WireError], None] = lambda error: None
) -> grpc.GenericRpcHandler:
    """Serves a service by the methods of an object: ``check_in(request, context)`` and so on.

    They are coroutines on a server of grpc.aio, functions on another. A request whose bytes are no
    such message, and a WireError that a method raises, are told to ``told`` and answered
    INVALID_ARGUMENT.
    """
    import grpc

    methods = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _served(getattr(servicer, snake_case(method.name)), method, told),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _served(
    act: Callable[..., Any], method: Any, told: Callable[[WireError], None]
) -> Callable[..., Any]:
    """The method over the bytes of its request: gRPC has no status for bytes that do not parse."""
    from grpc import StatusCode

    takes = GetMessageClass(method.input_type)

    def refusal(error: WireError) -> tuple[StatusCode, str]:
        told(error)
        return StatusCode.INVALID_ARGUMENT, f"{error.reason}: {error}"

    async def awaited(data: bytes, context: Any) -> Any:
        try:
            return await act(parse(takes, data), context)
        except WireError as error:
            await context.abort(*refusal(error))

    def called(data: bytes, context: Any) -> Any:
        try:
            return act(parse(takes, data), context)
        except WireError as error:
            context.abort(*refusal(error))

    return awaited if inspect.iscoroutinefunction(act) else called


def stubs(service: Service, channel: Any) -> SimpleNamespace:
    """The calls of a service over a channel: ``stubs(FLEET, channel).check_in(request)``."""
    return SimpleNamespace(
        **{
            snake_case(method.name): channel.unary_unary(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            for method in service.methods
        }
    )
