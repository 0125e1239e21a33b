"""Slots, hops, gates, epochs, order, and the one call per layer."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from omniserve_native import (
    Arena,
    ArenaConfig,
    AttendCall,
    DType,
    Exchange,
    ExchangeConfig,
    LayerCall,
    NativeError,
    Status,
    Workers,
)
from omniserve_native.library import ffi, lib
from support.kv_reference import Case, attention, bound
from support.shared_prefix import Family, Offloaded

SECOND_NS = 1_000_000_000
Q_HEADS, KV_HEADS, SIZE, HIDDEN, SCALE = 4, 2, 16, 24, 0.25


@dataclass
class Picked:
    """What one pick brought."""

    slots: list[int]
    o: np.ndarray
    residual: np.ndarray
    positions: list[int]


@dataclass
class Client:
    """Submits random rows and remembers each sequence's KV."""

    exchange: Exchange
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    next_block: int = 0

    def open(self, blocks: int = 4) -> int:
        """A slot of a new sequence with that many blocks."""
        arena = self.exchange.arena
        sequence = arena.open_sequence()
        arena.set_blocks(sequence, 0, range(self.next_block, self.next_block + blocks))
        self.next_block += blocks
        slot = self.exchange.open_slot(sequence)
        arena.release_sequence(sequence)  # the slot holds it
        return slot

    def draw(self, *shape: int) -> np.ndarray:
        """Random rows."""
        return self.random.standard_normal(shape).astype(np.float32)

    def submit(self, layer: int, slots: list[int], q_lens: list[int], iteration: int = 0):
        """q, k, v, residual of the rows that left."""
        rows = sum(q_lens)
        q, k, v = (self.draw(rows, heads, SIZE) for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
        residual = self.draw(rows, HIDDEN)
        self.exchange.submit(
            layer, iteration, np.array(slots, np.int32),
            q.ctypes.data, Q_HEADS * SIZE, k.ctypes.data, KV_HEADS * SIZE,
            v.ctypes.data, KV_HEADS * SIZE, residual.ctypes.data, HIDDEN,
        )  # fmt: skip
        return q, k, v, residual

    def pick(self, layer: int, rows: int = 32, wait_s: float = 30, iteration: int = 0) -> Picked:
        """Waits for all that is in flight at the layer."""
        slots = np.full(32, -1, np.int32)
        o = np.zeros((rows, Q_HEADS, SIZE), np.float32)
        residual = np.zeros((rows, HIDDEN), np.float32)
        positions = np.zeros(rows, np.int64)
        count, taken = self.exchange.pick(
            layer, iteration, rows, int(wait_s * SECOND_NS), slots, o.ctypes.data, Q_HEADS * SIZE,
            residual.ctypes.data, HIDDEN, positions=positions.ctypes.data,
        )  # fmt: skip
        return Picked(
            slots[:count].tolist(), o[:taken], residual[:taken], positions[:taken].tolist()
        )

    def reap_all(self) -> list[int]:
        """Reaps until nothing is in flight."""
        found = []
        while not found or self.exchange.stats().in_flight:
            found += self.exchange.reap()
        return found


@pytest.fixture
def client(exchange: Exchange) -> Client:
    return Client(exchange)


def check_hop(keys, values, q, o, position) -> None:
    right, _ = attention(q.astype(float), keys, values, position, SCALE)
    assert np.abs(o - right).max() < 1e-5


def test_hops_over_layers_and_tokens_agree_with_the_reference(client: Client) -> None:
    slot, position = client.open(), 0
    keys, values = [[], []], [[], []]
    for q_len in (1, 8, 3, 1, 5, 8, 8, 2):
        client.exchange.begin(slot, position, q_len)
        for layer in range(2):
            q, k, v, residual = client.submit(layer, [slot], [q_len])
            keys[layer].append(k)
            values[layer].append(v)
            picked = client.pick(layer)
            assert picked.slots == [slot]
            assert picked.positions == list(range(position, position + q_len))
            assert np.array_equal(picked.residual, residual)
            k_all, v_all = np.concatenate(keys[layer]), np.concatenate(values[layer])
            check_hop(k_all, v_all, q, picked.o, position)
            _, right_lse = attention(q.astype(float), k_all, v_all, position, SCALE)
            assert np.abs(client.exchange.lse(slot, q_len) - right_lse).max() < 1e-5
        position += q_len
    assert client.exchange.stats().picked_rows == 2 * position


def test_rejected_drafts_are_forgotten(client: Client) -> None:
    slot, arena = client.open(), client.exchange.arena
    client.exchange.begin(slot, 0, 8)
    _, k, v, _ = client.submit(0, [slot], [8])
    client.pick(0)
    arena.truncate(0, 3)
    client.exchange.begin(slot, 3, 2)
    q, k_more, v_more, _ = client.submit(0, [slot], [2])
    keys, values = np.concatenate([k[:3], k_more]), np.concatenate([v[:3], v_more])
    check_hop(keys, values, q, client.pick(0).o, 3)


def test_nothing_completes_behind_the_gate(client: Client, workers: Workers) -> None:
    slots = [client.open() for _ in range(3)]
    workers.pause()
    for slot in slots:
        client.exchange.begin(slot, 0, 2)
    client.submit(1, slots, [2, 2, 2], iteration=7)
    assert client.pick(1, wait_s=0.01, iteration=7).slots == []
    stats = client.exchange.stats()
    assert (stats.in_flight, stats.completed, workers.stats().items) == (3, 0, 0)
    assert client.exchange.waiting(1) == 3
    with pytest.raises(NativeError, match="seq 0 has items in flight") as caught:
        client.exchange.arena.truncate(0, 0)
    assert caught.value.code is Status.EBUSY
    workers.resume()
    assert client.pick(1, iteration=8).slots == slots
    stats = client.exchange.stats()
    assert (stats.in_flight, stats.completed, stats.same_iteration) == (0, 3, 0)
    assert client.exchange.waiting(1) == 0


def test_order_is_that_of_submission_and_lanes_are_respected(client: Client) -> None:
    slots = [client.open() for _ in range(4)]
    order, q_lens = [slots[2], slots[0], slots[3], slots[1]], [3, 3, 3, 1]
    for slot, q_len in zip(order, q_lens, strict=True):
        client.exchange.begin(slot, 0, q_len)
    client.submit(0, order[:1], q_lens[:1])
    client.submit(0, order[1:], q_lens[1:])
    assert client.pick(0, rows=2).slots == []  # rows of a slot join together; nobody overtakes
    assert client.pick(0, rows=7).slots == order[:2]
    assert client.exchange.waiting(0) == 2
    assert client.pick(1).slots == []
    assert client.pick(0).slots == order[2:]


def test_same_iteration_joins_are_counted(client: Client) -> None:
    slot = client.open()
    client.exchange.begin(slot, 0, 1)
    client.submit(0, [slot], [1], iteration=4)
    client.pick(0, iteration=4)
    client.submit(1, [slot], [1], iteration=4)
    client.pick(1, iteration=5)
    stats = client.exchange.stats()
    assert (stats.picked, stats.same_iteration) == (2, 1)


def test_joins_may_be_kept_for_later_iterations(arena: Arena, workers: Workers) -> None:
    config = ExchangeConfig(4, Q_HEADS, HIDDEN, DType.F32, SCALE, later_joins=True)
    with Exchange(config, arena, workers) as exchange:
        client = Client(exchange)
        slot = client.open()
        exchange.begin(slot, 0, 1)
        client.submit(0, [slot], [1], iteration=4)
        while not exchange.stats().ready:
            pass
        assert client.pick(0, wait_s=0, iteration=4).slots == []
        assert client.pick(0, wait_s=0, iteration=5).slots == [slot]
        client.submit(1, [slot], [1], iteration=5)
        assert client.pick(1, iteration=5).slots == [slot]  # an iteration that waits has them


def test_a_slot_closed_in_flight_comes_back_stale(client: Client, workers: Workers) -> None:
    kept, dropped = client.open(), client.open()
    workers.pause()
    for slot in (kept, dropped):
        client.exchange.begin(slot, 0, 1)
    client.submit(0, [dropped, kept], [1, 1])
    assert client.exchange.close_slot(dropped) is False
    with pytest.raises(NativeError, match=f"slot is {dropped}; it must be an open slot"):
        client.exchange.close_slot(dropped)
    assert client.exchange.reap() == []
    assert client.exchange.arena.length(1) == 1  # its sequence lives on
    workers.resume()
    assert client.pick(0).slots == [kept]
    assert client.reap_all() == [dropped]
    stats = client.exchange.stats()
    assert (stats.stale, stats.completed, stats.open) == (1, 1, 1)
    with pytest.raises(NativeError, match="seq is 1"):
        client.exchange.arena.length(1)
    assert client.open() == dropped


def test_closing_an_idle_and_a_ready_slot(client: Client) -> None:
    idle, ready, other = (client.open() for _ in range(3))
    assert client.exchange.close_slot(idle) is True
    for slot in (ready, other):
        client.exchange.begin(slot, 0, 1)
    client.submit(0, [ready, other], [1, 1])
    while client.exchange.stats().ready < 2:
        pass
    assert client.exchange.close_slot(ready) is True
    assert client.pick(0).slots == [other]
    assert client.exchange.stats().open == 1
    assert client.exchange.reap() == []


def test_closing_the_exchange_behind_a_closed_gate_ends(arena: Arena, workers: Workers) -> None:
    config = ExchangeConfig(2, Q_HEADS, HIDDEN, DType.F32, SCALE)
    client = Client(Exchange(config, arena, workers))
    slot = client.open()
    workers.pause()
    client.exchange.begin(slot, 0, 1)
    client.submit(0, [slot], [1])
    client.exchange.close()
    with pytest.raises(NativeError, match="seq is 0"):
        arena.length(0)
    workers.resume()


@pytest.mark.parametrize("split_tokens", [32, 48, 100, 100_000])
def test_splits_merge_to_the_same_answer(workers: Workers, split_tokens: int) -> None:
    arena = Arena(ArenaConfig(1, 1, SIZE, 40, 2, 40, DType.F32))
    config = ExchangeConfig(
        2, Q_HEADS, HIDDEN, DType.F32, SCALE, host_residual=False, split_tokens=split_tokens
    )
    exchange = Exchange(config, arena, workers)
    random = np.random.default_rng(split_tokens)
    sequence = arena.open_sequence()
    arena.set_blocks(sequence, 0, range(40))
    slot = exchange.open_slot(sequence)
    prior = 600
    keys, values = random.standard_normal((2, prior + 8, 1, SIZE)).astype(np.float32)
    arena.import_tokens(sequence, 0, 0, prior, keys.ctypes.data, values.ctypes.data)
    q = random.standard_normal((8, Q_HEADS, SIZE)).astype(np.float32)
    o, positions = np.zeros_like(q), np.zeros(8, np.int64)
    exchange.begin(slot, prior, 8)
    own = keys[prior:].copy(), values[prior:].copy()
    exchange.submit(0, 0, np.array([slot], np.int32), q.ctypes.data, Q_HEADS * SIZE,
                    own[0].ctypes.data, SIZE, own[1].ctypes.data, SIZE)  # fmt: skip
    slots = np.zeros(8, np.int32)
    exchange.pick(0, 0, 8, 30 * SECOND_NS, slots, o.ctypes.data, Q_HEADS * SIZE,
                  positions=positions.ctypes.data)  # fmt: skip
    check_hop(keys, values, q, o, prior)
    assert workers.stats().items == min(608 // split_tokens, 4) or split_tokens > 608
    exchange.close()
    arena.close()


def test_a_long_row_among_short_ones_is_split(workers: Workers) -> None:
    """Six items are enough for two workers, but one of them is 93 % of the tokens."""
    case = Case(((3000, 1), *((40, 1),) * 5), kv_heads=1, group=2)
    offloaded = Offloaded(Family(case, (0,) * 6), workers)
    offloaded.submit()
    assert offloaded.errors().o <= bound(case)
    assert workers.stats().items == 4 + 5
    offloaded.close()


def test_bad_calls_are_named(client: Client) -> None:
    exchange, slot = client.exchange, client.open()
    with pytest.raises(NativeError, match=f"slot {slot} has no token; call os_slot_begin"):
        client.submit(0, [slot], [1])
    with pytest.raises(NativeError, match="q_len is 9; it must lie between 1 and 8"):
        exchange.begin(slot, 0, 9)
    exchange.begin(slot, 5, 1)
    with pytest.raises(NativeError, match="position 5 with q_len 1; seq 0 has 0 tokens"):
        client.submit(0, [slot], [1])
    exchange.begin(slot, 0, 1)
    with pytest.raises(NativeError, match="is named twice"):
        client.submit(0, [slot, slot], [1, 1])
    with pytest.raises(NativeError, match="layer is 2"):
        client.submit(2, [slot], [1])
    with pytest.raises(NativeError, match="slot is 3; it must be an open slot"):
        exchange.close_slot(3)
    with pytest.raises(NativeError, match="has no finished hop") as caught:
        exchange.lse(slot, 1)
    assert caught.value.code is Status.ESTATE
    client.submit(0, [slot], [1])
    with pytest.raises(NativeError, match="has a hop under way"):
        exchange.begin(slot, 1, 1)
    client.pick(0)
    exchange.begin(slot, 1, 8)
    client.submit(0, [slot], [8])
    client.pick(0)
    with pytest.raises(NativeError, match="floats is 4; it must lie between 32"):
        exchange.lse(slot, 1)
    for _ in range(3):
        client.open()
    with pytest.raises(NativeError, match="all 4 slots are open") as caught:
        exchange.open_slot(0)
    assert caught.value.code is Status.EFULL


def test_workers_spin_unless_all_have_one_core() -> None:
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("needs two cores")
    first, second = sorted(mine)[:2]
    try:
        os.sched_setaffinity(0, {first})  # as the engine's thread is pinned
        for core, spin_ns in ((first, 0), (second, 70_000)):
            with Workers(1, cores=[core], spin_ns=70_000) as pool:
                assert pool.stats().spin_ns == spin_ns
    finally:
        os.sched_setaffinity(0, mine)


def test_an_exchange_needs_workers(arena: Arena) -> None:
    config = ExchangeConfig(2, Q_HEADS, HIDDEN, DType.F32, SCALE)
    with Workers(0) as none, pytest.raises(NativeError, match="workers has no thread"):
        Exchange(config, arena, none)


@pytest.mark.parametrize("cores", [[9999], [-1]])
def test_a_core_that_is_not_there_is_named(cores: list[int]) -> None:
    with pytest.raises(NativeError, match=rf"cores\[0\] is {cores[0]}"):
        Workers(1, cores=cores)


def test_one_call_per_layer_equals_separate_calls(client: Client, workers: Workers) -> None:
    """Two device rows and a tail of two slots; the tail joins at once or behind the gate."""
    device = Arena(ArenaConfig(2, KV_HEADS, SIZE, 16, 4, 4, DType.F32))
    sequences = np.array([device.open_sequence() for _ in range(2)], np.int32)
    for i, sequence in enumerate(sequences):
        device.set_blocks(sequence, 0, range(4 * i, 4 * i + 4))
    call = LayerCall(
        device, Q_HEADS, DType.F32, SCALE, capacity_rows=8, max_segments=4, workers=workers,
        exchange=client.exchange,
    )  # fmt: skip
    call.set_segments(sequences, np.array([1, 2]), np.zeros(2, np.int64))
    call.set_strides(Q_HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE, Q_HEADS * SIZE, HIDDEN)
    tail = [client.open(), client.open()]
    client.exchange.begin(tail[0], 0, 2)
    client.exchange.begin(tail[1], 0, 1)
    call.set_tail(np.array(tail, np.int32))
    q, k, v = (client.draw(8, heads, SIZE) for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
    residual, o = client.draw(8, HIDDEN), np.zeros((8, Q_HEADS, SIZE), np.float32)
    addresses = [array.ctypes.data for array in (q, k, v, o, residual)]
    parked = residual.copy()
    workers.pause()
    assert call.run(0, 1, *addresses, max_join_rows=5) == (0, 0)
    for own in (slice(0, 1), slice(1, 3)):
        check_hop(k[own], v[own], q[own], o[own], 0)
    workers.resume()
    residual[:] = 0
    call.set_segments(sequences[:0], sequences[:0], np.zeros(0, np.int64))
    joined = call.run(0, 2, *addresses, max_join_rows=5, wait_ns=30 * SECOND_NS)
    assert joined == (2, 3)
    assert call.tail_slots[:2].tolist() == tail
    assert call.positions[:3].tolist() == [0, 1, 0]
    assert np.array_equal(residual[:3], parked[3:6])
    for own, at in ((slice(3, 5), slice(0, 2)), (slice(5, 6), slice(2, 3))):
        check_hop(k[own], v[own], q[own], o[at], 0)
    with pytest.raises(ValueError, match="there is room for 8 rows"):
        call.run(1, 2, *addresses, max_join_rows=9)
    device.close()


def layer_call(client: Client) -> LayerCall:
    """With strides of float32 rows."""
    call = LayerCall(
        client.exchange.arena, Q_HEADS, DType.F32, SCALE, capacity_rows=4, max_segments=1,
        exchange=client.exchange,
    )  # fmt: skip
    call.set_strides(Q_HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE, Q_HEADS * SIZE, HIDDEN)
    return call


@pytest.mark.parametrize("wrong", ["segment", "join"])
def test_a_layer_call_that_fails_has_submitted_nothing(client: Client, wrong: str) -> None:
    call, slot, device = layer_call(client), client.open(), client.exchange.arena.open_sequence()
    client.exchange.begin(slot, 0, 1)
    call.set_tail(np.array([slot], np.int32))
    starts = np.full(1, 7 if wrong == "segment" else 0)
    client.exchange.arena.set_blocks(device, 0, [60])
    call.set_segments(np.array([device], np.int32), np.ones(1), starts)
    q, k, v = (client.draw(4, heads, SIZE) for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
    residual, o = client.draw(4, HIDDEN), client.draw(4, Q_HEADS, SIZE)
    addresses = [array.ctypes.data for array in (q, k, v, o, residual)]
    wait_ns = -1 if wrong == "join" else 0
    with pytest.raises(NativeError, match=r"wait_ns is -1|segments\[0\] is seq"):
        call.run(0, 1, *addresses, max_join_rows=1, wait_ns=wait_ns)
    assert client.exchange.stats().submitted == 0
    assert client.exchange.arena.length(device) == 0
    call.set_segments(np.zeros(0, np.int32), np.zeros(0), np.zeros(0))
    assert call.run(0, 1, *addresses, max_join_rows=1, wait_ns=30 * SECOND_NS) == (1, 1)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_the_memory_of_an_exchange_is_there_from_the_start(arena: Arena, workers: Workers) -> None:
    config = ExchangeConfig(16, Q_HEADS, 1 << 17, DType.F32, SCALE)  # 4 MiB of residual each
    before = resident_bytes()
    with Exchange(config, arena, workers):
        assert resident_bytes() - before > 16 << 22


def test_a_layer_call_without_exchange_refuses_joins(arena: Arena) -> None:
    call = LayerCall(arena, Q_HEADS, DType.F32, SCALE, capacity_rows=4, max_segments=1)
    assert call.run(0, 0, 0, 0, 0, 0, 0, max_join_rows=0) == (0, 0)
    with pytest.raises(NativeError, match="exchange is NULL"):
        call.run(0, 0, 0, 0, 0, 0, 0, max_join_rows=1)


def test_a_layer_call_refuses_more_segments_than_can_be() -> None:
    """Before it reads them to count their rows."""
    args = ffi.new("os_layer_args *")
    args.device.segments_count = 1 << 30
    args.device.segments = ffi.new("os_segment *")
    assert lib.os_layer(ffi.NULL, args) == -1
    line = ffi.string(lib.os_last_error()).decode()
    assert line == "segments_count is 1073741824; it must lie between 0 and 1048576"


def test_no_segments_are_no_work_for_the_workers(arena: Arena, workers: Workers) -> None:
    call = AttendCall(arena, Q_HEADS, DType.F32, SCALE, 1, workers)
    call.run(0, 0, 0, 0, 0)


def test_a_closed_exchange_says_so(arena: Arena, workers: Workers) -> None:
    exchange = Exchange(ExchangeConfig(2, Q_HEADS, HIDDEN, DType.F32, SCALE), arena, workers)
    call = LayerCall(
        arena, Q_HEADS, DType.F32, SCALE, capacity_rows=4, max_segments=1, exchange=exchange
    )
    exchange.close()
    exchange.close()
    with pytest.raises(ValueError, match="this exchange is closed"):
        exchange.stats()
    with pytest.raises(ValueError, match="this exchange is closed"):
        call.run(0, 0, 0, 0, 0, 0, 0, max_join_rows=1)


def test_an_exchange_without_its_workers_or_arena_says_so() -> None:
    config = ExchangeConfig(2, Q_HEADS, HIDDEN, DType.F32, SCALE)
    for missing in ("workers", "arena"):
        arena, workers = Arena(ArenaConfig(2, KV_HEADS, SIZE, 8, 2, 4, DType.F32)), Workers(1)
        exchange = Exchange(config, arena, workers)
        (workers if missing == "workers" else arena).close()
        with pytest.raises(ValueError, match=f"{missing} .*closed"):
            exchange.stats()
        with pytest.raises(ValueError, match=f"{missing} .*closed"):
            exchange.close()
        arena.close()
        workers.close()


def test_calls_of_closed_workers_say_so(arena: Arena) -> None:
    workers = Workers(1)
    attend = AttendCall(arena, Q_HEADS, DType.F32, SCALE, 1, workers)
    layer = LayerCall(
        arena, Q_HEADS, DType.F32, SCALE, capacity_rows=4, max_segments=1, workers=workers
    )
    workers.close()
    with pytest.raises(ValueError, match="these workers are closed"):
        attend.run(0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="these workers are closed"):
        layer.run(0, 0, 0, 0, 0, 0, 0, max_join_rows=0)
