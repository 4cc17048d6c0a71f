"""The program of the `mosaic_gpu` engine, in PTX: all picks of one image by a cluster of blocks.

Every thread owns one token: its energy, drift, gate and norms stay in registers, its column of the
factor in the block's shared memory. A pick takes two exchanges between the blocks and no barrier
of a block:

1. Each warp finds its best token and sends (key, token, energy, drift) to every block of the
   cluster, 16 bytes each. Every warp of every block waits for all of them and so finds the same
   winner.
2. The warp that owns the winner sends its column of the factor, k numbers, to every block. Each
   thread then updates its token from its own column, that one, and the pick's row of G, which was
   asked for before the column came.

The key orders as `loop.scores` does, in one unsigned number: the tier, then the score, as the bits
of a float that is not negative; the lowest token wins a tie, since lanes, warps and blocks hold
tokens in order. 0 is what may not be chosen.

Why no message can be lost or overwritten unread (all are `st.async`, counted in bytes by an
mbarrier of the receiver):

- The candidates of step k go to buffer k mod 2. A warp sends those of step k only after it has read
  all those of step k - 1. So what arrives for step k + 2 comes from a warp that has received the
  candidates k + 1 of every warp here, and every warp here had read its candidates of step k.
- The column of step k is sent by a warp that has received every warp's candidate of step k, and a
  warp sends that after it has done with the column of step k - 1. One buffer is enough.
- For the same reasons the phase of a barrier that a message belongs to is the current one, and a
  warp that waits slowly finds its phase just ended, never two phases further.
- A block leaves when all have arrived at the end.
"""

from dataclasses import dataclass

from .loop import EXHAUSTED

WARP = 32

WARPGROUP = 128
"""Threads in a thread of Pallas."""

TIER = 0x55555555
"""Keys of a tier. Scores below 1.4e13 have smaller bits, and those of a selection are below 4."""

_ARRIVE = "barrier.cluster.arrive.release.aligned;"

_CANDIDATE = 16
_CANDIDATES = 64  # bytes before them: three barriers
_TOGETHER = 16  # entries of the factor that a turn of the innermost loop reads


@dataclass(frozen=True)
class Plan:
    """Who does what.

    Attributes:
        n: tokens, N.
        keep: K.
        blocks: of the cluster; more than 8 are not portable.
        warpgroups: of a block, 128 threads each.
        spin: wait by asking again and again, instead of being woken.
        scope: of what a wait makes visible: "cluster", which also empties the first-level cache,
            or "cta".
        meet: exchange by ordinary stores and barriers of the whole cluster, instead of messages.
        mirror: every block holds the column of every warp's best token, so that one exchange a pick
            is enough.
        clocked: also write how long each part of the loop took.
    """

    n: int
    keep: int
    blocks: int = 8
    warpgroups: int = 1
    spin: bool = False
    scope: str = "cluster"
    meet: bool = False
    mirror: bool = False
    clocked: bool = False

    @property
    def tokens(self) -> int:
        """That a block owns."""
        return -(-self.n // self.blocks)

    @property
    def warps(self) -> int:
        """Of a block that own tokens."""
        return -(-self.tokens // WARP)

    @property
    def senders(self) -> int:
        """Warps of the cluster that own tokens."""
        return self.blocks * self.warps

    @property
    def share(self) -> int:
        """Candidates that a lane looks at: 1 or 2."""
        return -(-self.senders // WARP)

    @property
    def column(self) -> int:
        """Entries of a token's column, up to a whole turn of the innermost loop."""
        return -(-self.keep // _TOGETHER) * _TOGETHER

    @property
    def pitch(self) -> int:
        """Bytes from a column to the next: an odd number of 16, so that lanes use all banks."""
        return 4 * self.column + 16

    @property
    def at_column(self) -> int:
        return _CANDIDATES + 2 * self.share * WARP * _CANDIDATE

    @property
    def at_factor(self) -> int:
        columns = 2 * self.senders if self.mirror else 1
        return self.at_column + 4 * self.column * columns

    @property
    def shared_bytes(self) -> int:
        return self.at_factor + self.tokens * self.pitch

    @property
    def sound(self) -> bool:
        """Whether threads and messages are enough; the memory is not looked at."""
        threads = self.warpgroups * WARPGROUP
        return 2 <= self.blocks <= 16 and self.tokens <= threads <= 1024 and self.share <= 2


POINTS = ("candidate", "wait", "winner", "column", "wait", "product", "update")
"""What a clocked program tells apart, in cycles."""


def program(plan: Plan) -> str:
    """The text, for `llvm.inline_asm`.

    Operands: `$0` shared memory (32 bits); `$1` G (N, N), `$2` conditions (CONDITIONS, N), read;
    `$3` picks (K,), `$4` sums of energies (K + 1, senders), `$5` drift (N,), written; `$6` cycles
    (senders, 8), written where `clocked`.
    """
    steps = (
        [
            _champion(plan),
            _clock(plan, 0),
            _sum_of_energies(),
            _wait(plan, "CANDIDATES", "mine", "parity"),
            _clock(plan, 1),
            _winner(plan),
            _clock(plan, 2),
            _ask(plan),
            _note(plan),
            _clock(plan, 3),
            _clock(plan, 4),
            _product(plan),
            _clock(plan, 5),
            _update(plan),
            _key(),
            _clock(plan, 6),
        ]
        if plan.mirror
        else [
            _candidate(plan),
            _clock(plan, 0),
            _sum_of_energies(),
            _wait(plan, "CANDIDATES", "mine", "parity"),
            _clock(plan, 1),
            _winner(plan),
            _clock(plan, 2),
            _ask(plan),
            _send_column(plan),
            _note(plan),
            _clock(plan, 3),
            _wait(plan, "COLUMN", "base + 16", "odd"),
            _clock(plan, 4),
            _product(plan),
            _clock(plan, 5),
            _update(plan),
            _key(),
            _clock(plan, 6),
        ]
    )
    loop = "\n".join(steps)
    text = f"""{{
{_registers(plan)}
{_begin(plan)}
STEP:
{loop}
add.u32 k, k, 1;
setp.lt.u32 p, k, {plan.keep};
@p bra STEP;
{_sum_of_energies()}
{_end(plan)}
}}"""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _registers(plan: Plan) -> str:
    peers = ", ".join(f"peer{i}" for i in range(plan.blocks))
    clocks = ", ".join(f"c{i}" for i in range(8))
    return f"""
        .reg .pred p, q, changed, owns, sends, leads, writes, left, active, owner;
        .reg .b32 base, tid, lane, warp, rank, token, place, own, slot, first, k, {peers};
        .reg .b32 odd, parity, mine, buffer, bytes, best, votes, m, ci, ce, cd, there, its;
        .reg .b32 top, pick, offset, source, x0, x1, x2, x3, y0, y1, y2, y3, key, bits, tier;
        .reg .b32 held, side, side_of, whole, column, now, then, {clocks};
        .reg .f32 square, share, gate, energy, drift, score, value, limit, sum, other;
        .reg .f32 its_energy, its_drift, its_square, product, inverse, root, row, gone, ratio;
        .reg .f32 s0, s1, s2, s3, a0, a1, a2, a3, b0, b1, b2, b3;
        .reg .b64 gram, given, picks, sums, drifts, cycles, at, near;
    """


def _hex(value: float) -> str:
    import struct

    return "0f" + struct.pack(">f", value).hex().upper()


def _begin(plan: Plan) -> str:
    """Find out who this thread is, clear the shared memory, read the state."""
    maps = "\n".join(f"mapa.shared::cluster.u32 peer{i}, base, {i};" for i in range(plan.blocks))
    n = plan.n
    rows = "\n".join(
        f"ld.global.f32 {name}, [near + {4 * n * row}];"
        for row, name in enumerate(("square", "share", "gate", "energy", "score"))
    )
    clocks = "\n".join(f"mov.u32 c{i}, 0;" for i in range(8)) if plan.clocked else ""
    return f"""
        mov.u32 base, $0;
        mov.u64 gram, $1;
        mov.u64 given, $2;
        mov.u64 picks, $3;
        mov.u64 sums, $4;
        mov.u64 drifts, $5;
        {"mov.u64 cycles, $6;" if plan.clocked else ""}
        mov.u32 tid, %tid.x;
        mov.u32 rank, %cluster_ctarank;
        and.b32 lane, tid, 31;
        shr.u32 warp, tid, 5;
        mad.lo.u32 token, rank, {plan.tokens}, tid;
        setp.lt.u32 owns, tid, {plan.tokens};
        setp.lt.and.u32 owns, token, {n}, owns;
        setp.lt.u32 sends, lane, {plan.blocks};
        setp.eq.u32 leads, tid, 0;
        setp.eq.and.u32 writes, rank, 0, leads;
        min.u32 place, token, {n - 1};
        min.u32 own, tid, {plan.tokens - 1};
        mad.lo.u32 own, own, {plan.pitch}, base;
        add.u32 own, own, {plan.at_factor};
        mad.lo.u32 slot, rank, {plan.warps}, warp;
        sub.u32 first, token, lane;

        @leads mbarrier.init.shared::cta.b64 [base], {plan.senders if plan.mirror else 1};
        @leads mbarrier.init.shared::cta.b64 [base + 8], {plan.senders if plan.mirror else 1};
        @leads mbarrier.init.shared::cta.b64 [base + 16], 1;
        @leads fence.mbarrier_init.release.cluster;
        mov.u32 x0, 0;
        shl.b32 offset, tid, 4;
        add.u32 offset, offset, {_CANDIDATES};
        CLEAR:
        setp.lt.u32 p, offset, {plan.shared_bytes};
        add.u32 source, base, offset;
        @p st.shared.v4.b32 [source], {{x0, x0, x0, x0}};
        add.u32 offset, offset, {16 * WARPGROUP * plan.warpgroups};
        @p bra CLEAR;
        barrier.cluster.arrive.release.aligned;
        barrier.cluster.wait.acquire.aligned;
        setp.ge.u32 p, warp, {plan.warps};
        @p bra {"MEET" if plan.meet else "LEAVE"};

        {maps}
        min.u32 there, lane, {plan.blocks - 1};
        mapa.shared::cluster.u32 its, base, there;
        mad.wide.u32 near, place, 4, given;
        {rows}
        @!owns mov.f32 energy, {_hex(-1.0)};
        @!owns mov.f32 score, {_hex(-1.0)};
        mov.f32 drift, {_hex(1.0)};
        mov.u32 k, 0;
        mov.u32 held, 32;
        mov.u32 side, 0;
        mov.f32 row, {_hex(0.0)};
        {clocks}
        {"mov.u32 then, %clock;" if plan.clocked else ""}
        {_key()}
        max.u32 key, key, 1;
        setp.lt.f32 p, score, {_hex(0.0)};
        @p mov.u32 key, 0;
    """


def _key() -> str:
    """What this thread's token is chosen by."""
    return f"""
        mul.rn.f32 value, gate, energy;
        mul.rn.f32 limit, square, {_hex(EXHAUSTED)};
        setp.gt.f32 p, gate, {_hex(0.0)};
        selp.f32 value, value, energy, p;
        selp.b32 tier, {2 * TIER + 1}, {TIER + 1}, p;
        setp.le.f32 p, energy, limit;
        selp.f32 value, gate, value, p;
        selp.b32 tier, 1, tier, p;
        max.f32 value, value, {_hex(0.0)};
        mov.b32 bits, value;
        min.u32 bits, bits, {TIER - 1};
        add.u32 key, bits, tier;
        setp.lt.f32 p, energy, {_hex(0.0)};
        selp.b32 key, 0, key, p;
    """


def _expect(plan: Plan, barrier: str, size: int | str) -> str:
    """Say how many bytes this phase of a barrier waits for."""
    if plan.meet:
        return ""
    return f"@leads mbarrier.arrive.expect_tx.shared::cta.b64 _, [{barrier}], {size};"


def _send(plan: Plan, to: str, words: str, barrier: str) -> str:
    """Four words into the memory of a block."""
    if plan.meet:
        return f"st.shared::cluster.v4.b32 [{to}], {{{words}}};"
    return (
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"
        f" [{to}], {{{words}}}, [{barrier}];"
    )


def _candidate(plan: Plan) -> str:
    """Find the warp's best token, and tell every block."""
    size = plan.share * WARP * _CANDIDATE
    return f"""
        bar.warp.sync 0xffffffff;
        and.b32 odd, k, 1;
        shr.u32 parity, k, 1;
        and.b32 parity, parity, 1;
        redux.sync.max.u32 best, key, 0xffffffff;
        setp.eq.u32 p, key, best;
        vote.sync.ballot.b32 votes, p, 0xffffffff;
        brev.b32 votes, votes;
        clz.b32 m, votes;
        mov.b32 x0, energy;
        mov.b32 x1, drift;
        shfl.sync.idx.b32 ce, x0, m, 31, 0xffffffff;
        shfl.sync.idx.b32 cd, x1, m, 31, 0xffffffff;
        add.u32 ci, first, m;
        min.u32 ci, ci, {plan.n - 1};
        shl.b32 offset, odd, 3;
        add.u32 mine, base, offset;
        add.u32 y0, its, offset;
        mul.lo.u32 buffer, odd, {size};
        shl.b32 y1, slot, 4;
        add.u32 y1, y1, buffer;
        add.u32 y1, y1, its;
        {_expect(plan, "mine", plan.senders * _CANDIDATE)}
        @sends {_send(plan, f"y1 + {_CANDIDATES}", "best, ci, ce, cd", "y0")}
        {_ARRIVE if plan.meet else ""}
    """


def _champion(plan: Plan) -> str:
    """Find the warp's best token, and tell every block, with what they lack of its column.

    That is the last entry where it was the best before; else the whole column, into the other one
    of two places, since somebody may still read what the old one was picked by.
    """
    size = plan.share * WARP * _CANDIDATE
    pieces = "\n".join(
        f"""
        add.u32 y0, peer{i}, offset;
        add.u32 y2, peer{i}, mine;
        sub.u32 y2, y2, base;
        {_send(plan, f"y0 + {plan.at_column}", "x0, x1, x2, x3", "y2")}"""
        for i in range(plan.blocks)
    )
    return f"""
        bar.warp.sync 0xffffffff;
        and.b32 odd, k, 1;
        shr.u32 parity, k, 1;
        and.b32 parity, parity, 1;
        redux.sync.max.u32 best, key, 0xffffffff;
        setp.eq.u32 p, key, best;
        vote.sync.ballot.b32 votes, p, 0xffffffff;
        brev.b32 votes, votes;
        clz.b32 m, votes;
        mov.b32 x0, energy;
        mov.b32 x1, drift;
        mov.b32 x2, row;
        shfl.sync.idx.b32 ce, x0, m, 31, 0xffffffff;
        shfl.sync.idx.b32 cd, x1, m, 31, 0xffffffff;
        shfl.sync.idx.b32 x3, x2, m, 31, 0xffffffff;
        add.u32 ci, first, m;
        min.u32 ci, ci, {plan.n - 1};
        setp.ne.u32 changed, m, held;
        mov.u32 held, m;
        @changed xor.b32 side, side, 1;
        shl.b32 y1, side, 31;
        or.b32 ci, ci, y1;
        add.u32 bytes, k, {_TOGETHER - 1};
        and.b32 bytes, bytes, {(1 << 32) - _TOGETHER};
        shl.b32 bytes, bytes, 2;
        add.u32 whole, bytes, {_CANDIDATE};
        selp.b32 whole, whole, {_CANDIDATE + 4}, changed;
        shl.b32 offset, odd, 3;
        add.u32 mine, base, offset;
        add.u32 y0, its, offset;
        @sends mbarrier.arrive.expect_tx.shared::cluster.b64 _, [y0], whole;
        mul.lo.u32 buffer, odd, {size};
        shl.b32 y1, slot, 4;
        add.u32 y1, y1, buffer;
        add.u32 y1, y1, its;
        @sends {_send(plan, f"y1 + {_CANDIDATES}", "best, ci, ce, cd", "y0")}
        shl.b32 column, slot, 1;
        add.u32 column, column, side;
        mul.lo.u32 column, column, {4 * plan.column};
        @changed bra WHOLE;
        shl.b32 y1, k, 2;
        add.u32 y1, y1, column;
        add.u32 y1, y1, its;
        @sends st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32
        [y1 + {plan.at_column - 4}], x3, [y0];
        bra SENT;
        WHOLE:
        shl.b32 y1, warp, 5;
        add.u32 y1, y1, m;
        mad.lo.u32 source, y1, {plan.pitch}, base;
        shl.b32 whole, lane, 4;
        PIECE:
        setp.ge.u32 p, whole, bytes;
        @p bra SENT;
        add.u32 y1, source, whole;
        ld.shared.v4.b32 {{x0, x1, x2, x3}}, [y1 + {plan.at_factor}];
        add.u32 offset, column, whole;
        {pieces}
        add.u32 whole, whole, {16 * WARP};
        bra PIECE;
        SENT:
        bar.warp.sync 0xffffffff;
    """.replace("bytes.b32\n        [", "bytes.b32 [")


def _sum_of_energies() -> str:
    """What is left of the warp's tokens before step k; nobody waits for it."""
    turns = "\n".join(
        f"""mov.b32 x0, sum;
        shfl.sync.bfly.b32 x1, x0, {distance}, 31, 0xffffffff;
        mov.b32 other, x1;
        add.rn.f32 sum, sum, other;"""
        for distance in (16, 8, 4, 2, 1)
    )
    return f"""
        max.f32 sum, energy, {_hex(0.0)};
        {turns}
        setp.eq.u32 p, lane, 0;
        mad.wide.u32 at, slot, 4, sums;
        @p st.global.f32 [at], sum;
    """


def _wait(plan: Plan, name: str, barrier: str, parity: str) -> str:
    """Until this phase of a barrier has ended."""
    if plan.meet:
        return "barrier.cluster.wait.acquire.aligned;"
    how = "test_wait" if plan.spin else "try_wait"
    return f"""
        {name}:
        mbarrier.{how}.parity.acquire.{plan.scope}.shared::cta.b64 p, [{barrier}], {parity};
        @!p bra {name};
    """


def _winner(plan: Plan) -> str:
    """The same in every warp of the cluster."""
    two = ""
    if plan.share == 2:
        two = f"""
        ld.shared.v4.b32 {{y0, y1, y2, y3}}, [source + {_CANDIDATES + _CANDIDATE}];
        setp.gt.u32 q, y0, x0;
        selp.b32 offset, 1, 0, q;
        selp.b32 x0, y0, x0, q;
        selp.b32 x1, y1, x1, q;
        selp.b32 x2, y2, x2, q;
        selp.b32 x3, y3, x3, q;
        """
    second = """
        shfl.sync.idx.b32 offset, offset, m, 31, 0xffffffff;
        shl.b32 m, m, 1;
        add.u32 m, m, offset;
    """
    mirrored = f"""
        shr.u32 side_of, pick, 31;
        and.b32 pick, pick, {(1 << 31) - 1};
        shl.b32 column, m, 1;
        add.u32 column, column, side_of;
        mul.lo.u32 column, column, {4 * plan.column};
    """
    return f"""
        mad.lo.u32 source, lane, {plan.share * _CANDIDATE}, base;
        add.u32 source, source, buffer;
        ld.shared.v4.b32 {{x0, x1, x2, x3}}, [source + {_CANDIDATES}];
        {two}
        redux.sync.max.u32 top, x0, 0xffffffff;
        setp.eq.u32 p, x0, top;
        vote.sync.ballot.b32 votes, p, 0xffffffff;
        brev.b32 votes, votes;
        clz.b32 m, votes;
        shfl.sync.idx.b32 pick, x1, m, 31, 0xffffffff;
        shfl.sync.idx.b32 x2, x2, m, 31, 0xffffffff;
        shfl.sync.idx.b32 x3, x3, m, 31, 0xffffffff;
        {second if plan.share == 2 else ""}
        {mirrored if plan.mirror else ""}
        mov.b32 its_energy, x2;
        mov.b32 its_drift, x3;
        setp.ne.u32 left, top, 0;
        setp.gt.u32 active, top, {TIER};
        setp.eq.u32 owner, m, slot;
    """


def _send_column(plan: Plan) -> str:
    """By the warp that owns the winner, to every block, in whole turns of the innermost loop."""
    sends = "\n".join(
        f"""
        add.u32 y0, peer{i}, offset;
        {_send(plan, f"y0 + {plan.at_column}", "x0, x1, x2, x3", f"peer{i} + 16")}"""
        for i in range(plan.blocks)
    )
    return f"""
        add.u32 bytes, k, {_TOGETHER - 1};
        and.b32 bytes, bytes, {(1 << 32) - _TOGETHER};
        shl.b32 bytes, bytes, 2;
        {_expect(plan, "base + 16", "bytes")}
        @!owner bra SENT;
        sub.u32 source, pick, first;
        shl.b32 y1, warp, 5;
        add.u32 source, source, y1;
        mad.lo.u32 source, source, {plan.pitch}, base;
        shl.b32 offset, lane, 4;
        PIECE:
        setp.ge.u32 p, offset, bytes;
        @p bra SENT;
        add.u32 y1, source, offset;
        ld.shared.v4.b32 {{x0, x1, x2, x3}}, [y1 + {plan.at_factor}];
        {sends}
        add.u32 offset, offset, {16 * WARP};
        bra PIECE;
        SENT:
        bar.warp.sync 0xffffffff;
        {_ARRIVE if plan.meet else ""}
    """


def _ask(plan: Plan) -> str:
    """For the pick's row of G, which is not needed before its column has come."""
    return f"""
        mad.lo.u32 y1, pick, {plan.n}, place;
        mad.wide.u32 at, y1, 4, gram;
        ld.global.nc.f32 product, [at];
        mad.wide.u32 at, pick, 4, given;
        ld.global.nc.f32 its_square, [at];
    """


def _note(plan: Plan) -> str:
    """What needs nothing but the pick, while its column is on its way."""
    return f"""
        mad.wide.u32 at, k, 4, picks;
        selp.b32 y1, pick, {plan.n}, left;
        @writes st.global.u32 [at], y1;
        selp.f32 inverse, its_energy, {_hex(1.0)}, active;
        rcp.rn.f32 inverse, inverse;
        selp.f32 inverse, inverse, {_hex(0.0)}, active;
        sqrt.rn.f32 root, inverse;
        add.u64 sums, sums, {4 * plan.senders};
    """


def _product(plan: Plan) -> str:
    """The pick's column with this token's."""
    terms = "\n".join(
        f"""
        ld.shared.v4.f32 {{a0, a1, a2, a3}}, [y0 + {16 * i}];
        ld.shared.v4.f32 {{b0, b1, b2, b3}}, [y1 + {16 * i}];
        fma.rn.f32 s0, a0, b0, s0;
        fma.rn.f32 s1, a1, b1, s1;
        fma.rn.f32 s2, a2, b2, s2;
        fma.rn.f32 s3, a3, b3, s3;"""
        for i in range(_TOGETHER // 4)
    )
    zeros = "\n".join(f"mov.f32 s{i}, {_hex(0.0)};" for i in range(4))
    return f"""
        {zeros}
        add.u32 y0, base, {plan.at_column};
        {"add.u32 y0, y0, column;" if plan.mirror else ""}
        mov.u32 y1, own;
        add.u32 y2, y0, bytes;
        TERMS:
        setp.ge.u32 p, y0, y2;
        @p bra SUMMED;
        {terms}
        add.u32 y0, y0, {4 * _TOGETHER};
        add.u32 y1, y1, {4 * _TOGETHER};
        bra TERMS;
        SUMMED:
        add.rn.f32 s0, s0, s1;
        add.rn.f32 s2, s2, s3;
        add.rn.f32 s0, s0, s2;
    """


def _update(plan: Plan) -> str:
    """`kernels.advance` for this thread's token."""
    return f"""
        sub.rn.f32 row, product, s0;
        mul.rn.f32 row, row, root;
        selp.f32 row, row, {_hex(0.0)}, active;
        shl.b32 y1, k, 2;
        add.u32 y1, y1, own;
        @owns st.shared.f32 [y1], row;
        mul.rn.f32 gone, row, row;
        mul.rn.f32 ratio, its_square, inverse;
        mul.rn.f32 ratio, ratio, gone;
        mul.rn.f32 ratio, ratio, share;
        add.rn.f32 other, ratio, {_hex(1.0)};
        mul.rn.f32 ratio, ratio, its_drift;
        fma.rn.f32 drift, ratio, other, drift;
        setp.lt.f32 p, energy, {_hex(0.0)};
        setp.eq.and.u32 q, token, pick, left;
        or.pred p, p, q;
        sub.rn.f32 energy, energy, gone;
        max.f32 energy, energy, {_hex(0.0)};
        @p mov.f32 energy, {_hex(-1.0)};
    """


def _clock(plan: Plan, i: int) -> str:
    if not plan.clocked:
        return ""
    return f"""
        mov.u32 now, %clock;
        sub.u32 then, now, then;
        add.u32 c{i}, c{i}, then;
        mov.u32 then, now;
    """


def _end(plan: Plan) -> str:
    clocks = ""
    if plan.clocked:
        stores = "\n".join(f"@p st.global.u32 [at + {4 * i}], c{i};" for i in range(8))
        clocks = f"""
        setp.eq.u32 p, lane, 0;
        mad.wide.u32 at, slot, 32, cycles;
        {stores}
        """
    both = f"{_ARRIVE}\n{_wait(plan, '', '', '')}"
    meet = f"""
        bra LEAVE;
        MEET:
        mov.u32 k, 0;
        AGAIN:
        {both}
        {both}
        add.u32 k, k, 1;
        setp.lt.u32 p, k, {plan.keep};
        @p bra AGAIN;
        """
    if not plan.meet:
        meet = ""
    return f"""
        mad.wide.u32 at, place, 4, drifts;
        @owns st.global.f32 [at], drift;
        {clocks}
        {meet}
        LEAVE:
        barrier.cluster.arrive.release.aligned;
        barrier.cluster.wait.acquire.aligned;
    """
