"""SagaService over gRPC. No rules, no SQL, no ``try``."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from common.paging import Page
from common.rpc.convert import microseconds_from, money_from, time_to
from common.rpc.reasons import refuses
from order_service.errors import SagaNotFound, SagaNotRetryable
from order_service.model.saga import Saga, SagaKind, SagaState, StepRecord, StepState
from order_service.model.saga_command import ResolveSaga, RetrySagas, Standing
from order_service.peer_refusals import NO_ANSWER
from order_service.use_cases.saga import Sagas
from tally.order.v1 import order_pb2 as pb
from tally.order.v1 import order_pb2_grpc

_KINDS: Final = {kind: pb.Saga.Kind.Value(f"KIND_{kind}") for kind in SagaKind}
_STATES: Final = {state: pb.Saga.State.Value(f"STATE_{state}") for state in SagaState}
_STATES_BY_NUMBER: Final = {number: state for state, number in _STATES.items()}
_KINDS_BY_NUMBER: Final = {number: kind for kind, number in _KINDS.items()}
_STEP_STATES: Final = {state: pb.SagaStep.State.Value(f"STATE_{state}") for state in StepState}


class SagaServicer(order_pb2_grpc.SagaServiceServicer):
    def __init__(self, sagas: Sagas) -> None:
        self._sagas = sagas

    @refuses()
    async def ListSagas(self, request: pb.ListSagasRequest, context: Any) -> pb.ListSagasResponse:
        state = _STATES_BY_NUMBER[request.state] if request.HasField("state") else None
        user_id = request.user_id or None
        # Without the user where there is none: as in the tokens of the earlier release.
        filters = [state.value if state else "", *([user_id] if user_id else [])]
        page = Page.of(request.page_size, request.page_token, filters=filters, key=(str,))
        found = await self._sagas.list_sagas(state, user_id, page)
        sagas, next_page_token = found.messages(_saga)
        return pb.ListSagasResponse(sagas=sagas, next_page_token=next_page_token)

    @refuses(SagaNotFound)
    async def GetSaga(self, request: pb.GetSagaRequest, context: Any) -> pb.GetSagaResponse:
        if request.WhichOneof("target") == "saga_id":
            saga = await self._sagas.get_saga(request.saga_id)
        else:
            saga = await self._sagas.get_latest_saga(request.order_id)
        return pb.GetSagaResponse(saga=_saga(saga))

    @refuses(SagaNotFound, SagaNotRetryable)
    async def RetrySaga(self, request: pb.RetrySagaRequest, context: Any) -> pb.RetrySagaResponse:
        written = await self._sagas.retry(request.saga_id, request.request_id)
        return pb.RetrySagaResponse(saga=_saga(written.value), replayed=written.replayed)

    @refuses()
    async def RetrySagas(
        self, request: pb.RetrySagasRequest, context: Any
    ) -> pb.RetrySagasResponse:
        written = await self._sagas.retry_many(
            RetrySagas(
                _STATES_BY_NUMBER[request.state] if request.HasField("state") else None,
                _KINDS_BY_NUMBER[request.kind] if request.HasField("kind") else None,
                request.last_reason if request.HasField("last_reason") else None,
                microseconds_from(request.age, "age"),
                request.request_id,
            )
        )
        return pb.RetrySagasResponse(count=written.value, replayed=written.replayed)

    @refuses(SagaNotFound, SagaNotRetryable, *NO_ANSWER)
    async def ResolveSaga(
        self, request: pb.ResolveSagaRequest, context: Any
    ) -> pb.ResolveSagaResponse:
        standing = tuple(
            Standing(
                one.step,
                money_from(one.amount) if one.HasField("amount") else None,
                one.reason,
            )
            for one in request.standing
        )
        written = await self._sagas.resolve(
            ResolveSaga(request.saga_id, "", request.reason, standing, request.request_id)
        )
        return pb.ResolveSagaResponse(saga=_saga(written.value), replayed=written.replayed)


def _saga(saga: Saga) -> pb.Saga:
    """The saga as a message."""
    return pb.Saga(
        saga_id=saga.saga_id,
        kind=_KINDS[saga.kind],
        order_id=saga.order_id,
        user_id=saga.user_id,
        state=_STATES[saga.state],
        steps=[_step(step) for step in saga.steps],
        epoch=saga.epoch,
        attempts=saga.attempts,
        next_attempt_time=_time(saga.next_attempt_time),
        last_error=saga.last_error,
        resolution_reason=saga.resolution_reason,
        create_time=_time(saga.create_time),
        update_time=_time(saga.update_time),
    )


def _step(step: StepRecord) -> pb.SagaStep:
    return pb.SagaStep(
        name=step.name,
        state=_STEP_STATES[step.state],
        attempts=step.attempts,
        begin_time=_time(step.begin_time),
        end_time=_time(step.end_time),
        last_error=step.last_error,
        next_attempt_time=_time(step.next_attempt_time),
        participant=step.participant,
        request_id=step.request_id,
        fenced=step.fenced,
        undo_begun=step.undo_begun,
        standing_minor=step.standing_minor,
        standing_reason=step.standing_reason,
    )


def _time(at: datetime | None) -> Timestamp | None:
    return None if at is None else time_to(at)
