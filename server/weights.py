"""The global model from round to round: its weights, and what the server's step remembers of earlier ones."""

from __future__ import annotations

from cxrbase_model.aggregation import Add
from cxrbase_model.plan import EvaluateStage, Round
from cxrbase_model.state import State
from server.initial import initial_state
from server.records import Record
from server.rules.step import step
from server.stage_model import averages
from server.store import RunStore
from server.variates import advanced, first_variates, outcome, taken_in, variates_of


class GlobalModel:
    """Reads the newest weights from the run directory once, and keeps them from then on."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._newest: tuple[int, State, State] | None = None  # round, weights, what is remembered

    def before(self, item: Round) -> State:
        """The weights that a round starts from; StoreError where they are gone."""
        if isinstance(item.stage, EvaluateStage):
            return self._store.stage_state(item.model_of)
        if item.stage_round == 1:
            return initial_state(self._store.plan, item.stage, self._store)
        if self._newest is not None and self._newest[0] == item.number - 1:
            return self._newest[1]
        return self._store.state(item.number - 1)

    def variates(self, item: Round) -> State:
        """SCAFFOLD's variates of the server that a round's task brings, by the names that they travel by; none without SCAFFOLD."""
        if isinstance(item.stage, EvaluateStage):
            return {}
        return variates_of(self._memory(item)) or first_variates(self._store.plan, item)

    def advance(
        self, item: Round, state: State, update: State, entries: list[Record]
    ) -> tuple[State, State, str | None]:
        """The weights after a training round that started from `state`, and what is remembered for the next; `update` is used up.

        entries: the hospitals of the round. The third is what became of SCAFFOLD's variates (`variates.outcome`), None without.
        """
        variates, found = self.variates(item), None
        if variates:
            known = taken_in(self._store.records(), item.stage.name)
            found = outcome(known, entries)
            variates = advanced(variates, update, known, entries, found)
        move, memory = step(self._store.plan.aggregation.step, update, self._memory(item), averages(item.stage))
        memory |= variates
        for name, tensor in move.items():  # in place: a third model is not held
            tensor += state[name]
        after = move
        self._newest = (item.number, after, memory)
        return after, memory, found

    def _memory(self, item: Round) -> State:
        aggregation = self._store.plan.aggregation
        if item.stage_round == 1 or (isinstance(aggregation.step, Add) and not aggregation.scaffold):
            return {}
        if self._newest is not None and self._newest[0] == item.number - 1:
            return self._newest[2]
        return self._store.memory(item.number - 1)
