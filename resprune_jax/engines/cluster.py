"""The program of the `mosaic_gpu` engine, in PTX: all picks of one image by a cluster of blocks.

Every thread owns one token, or two of very many: its energy, drift, gate and norms stay in
registers, its column of the factor in the block's shared memory. A pick takes two exchanges
between the blocks and no barrier of a block:

1. Each warp finds its best token and sends (key, token, energy, drift) to every block of the
   cluster, 16 bytes each. Every warp of every block waits for all of them and so finds the same
   winner.
2. The warp that owns the winner sends its column of the factor, k numbers, to every block. Each
   thread then updates its token from its own column, that one, and the pick's row of G, which was
   asked for before the column came.

The key orders as `loop.scores` does, in one unsigned number: the tier, then the score, as the bits
of a float that is not negative; the lowest token wins a tie, since lanes, warps and blocks hold
tokens in order. 0 is what may not be chosen.

What a message holds, and why none can be lost, is in `exchange.py`.
"""

import struct

from . import exchange
from .exchange import CANDIDATES, TIER, TOGETHER, WARPGROUP, Plan
from .loop import EXHAUSTED

POINTS = ("candidate", "wait", "winner", "column", "wait", "product", "update")
"""What a clocked program tells apart, in cycles."""

STATE = 3
"""Numbers of a token that a panel hands to the next: energy, score, drift."""


def program(plan: Plan) -> str:
    """The text, for `llvm.inline_asm`.

    Operands: `$0` shared memory (32 bits); `$1` G (N, N), `$2` conditions (CONDITIONS, N), read;
    `$3` picks (K,), `$4` sums of energies (K + 1, senders), `$5` drift (N,), written; `$6` cycles
    (senders, 8), written where `clocked`.

    Of a panel: after the conditions, of which the first three are read, the state (STATE, N):
    energy, score, drift; in the place of the drift the state after the last pick; after the cycles
    the rows of the factor (K, N).
    """
    steps = (
        exchange.candidate(plan),
        _clock(plan, 0),
        _sum_of_energies(plan),
        exchange.wait("CANDIDATES", "mine", "parity"),
        _clock(plan, 1),
        exchange.winner(plan),
        _clock(plan, 2),
        _ask(plan),
        exchange.send_column(plan),
        _note(plan),
        _clock(plan, 3),
        exchange.wait("COLUMN", "base + 16", "odd"),
        _clock(plan, 4),
        exchange.for_each(plan, _product(plan)),
        _clock(plan, 5),
        exchange.for_each(plan, _update(plan) + _key()),
        _clock(plan, 6),
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
{_sum_of_energies(plan)}
{_end(plan)}
}}"""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _registers(plan: Plan) -> str:
    """Declared ahead.

    `changed`, `held`, `side`, `side_of`, `whole` and `column` do nothing, here and in `_begin`:
    they stay until the next run on a card, so that the text is, to the letter, what ran on one.
    """
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
        {".reg .b64 before, after, rows;" if plan.panel else ""}
        {_second() if plan.each > 1 else ""}
    """


def _second() -> str:
    """Of a thread's second token."""
    kinds = {"owns": "pred", "token": "b32", "place": "b32", "own": "b32", "key": "b32"}
    names = [name for name in exchange.PRIVATE if name.islower()]
    made = [f".reg .{kinds.get(name, 'f32')} {name}1;" for name in names]
    return "\n".join([*made, ".reg .f32 known;"])


def _hex(value: float) -> str:
    return "0f" + struct.pack(">f", value).hex().upper()


def _operands(plan: Plan) -> str:
    names = ["gram", "given", "picks", "sums", "drifts", "cycles"]
    if plan.panel:
        names = ["gram", "given", "before", "picks", "sums", "after", "cycles", "rows"]
    return "\n".join(
        f"mov.u64 {name}, ${i};"
        for i, name in enumerate(names, 1)
        if plan.clocked or name != "cycles"
    )


def _state(plan: Plan) -> str:
    """What is known of the thread's token before the first step."""
    n = plan.n
    known, rest = ["square", "share", "gate"], ["energy", "score"]
    if not plan.panel:
        known += rest
    text = ["mad.wide.u32 near, place, 4, given;"]
    text += [f"ld.global.f32 {name}, [near + {4 * n * i}];" for i, name in enumerate(known)]
    if plan.panel:
        text.append("mad.wide.u32 near, place, 4, before;")
        rest.append("drift")
        text += [f"ld.global.f32 {name}, [near + {4 * n * i}];" for i, name in enumerate(rest)]
    text.append(f"@!owns mov.f32 energy, {_hex(-1.0)};")
    text.append(f"@!owns mov.f32 score, {_hex(-1.0)};")
    if not plan.panel:
        text.append(f"mov.f32 drift, {_hex(1.0)};")
    return "\n".join(text)


def _begin(plan: Plan) -> str:
    """Find out who this thread is, clear the shared memory, read the state."""
    maps = "\n".join(f"mapa.shared::cluster.u32 peer{i}, base, {i};" for i in range(plan.blocks))
    clocks = "\n".join(f"mov.u32 c{i}, 0;" for i in range(8)) if plan.clocked else ""
    return f"""
        mov.u32 base, $0;
        {_operands(plan)}
        mov.u32 tid, %tid.x;
        mov.u32 rank, %cluster_ctarank;
        and.b32 lane, tid, 31;
        shr.u32 warp, tid, 5;
        {exchange.who(plan)}
        setp.lt.u32 sends, lane, {plan.blocks};
        setp.eq.u32 leads, tid, 0;
        setp.eq.and.u32 writes, rank, 0, leads;
        {exchange.where(plan)}
        mad.lo.u32 slot, rank, {plan.warps}, warp;
        sub.u32 first, token, lane;

        @leads mbarrier.init.shared::cta.b64 [base], 1;
        @leads mbarrier.init.shared::cta.b64 [base + 8], 1;
        @leads mbarrier.init.shared::cta.b64 [base + 16], 1;
        @leads fence.mbarrier_init.release.cluster;
        mov.u32 x0, 0;
        shl.b32 offset, tid, 4;
        add.u32 offset, offset, {CANDIDATES};
        CLEAR:
        setp.lt.u32 p, offset, {plan.shared_bytes};
        add.u32 source, base, offset;
        @p st.shared.v4.b32 [source], {{x0, x0, x0, x0}};
        add.u32 offset, offset, {16 * WARPGROUP * plan.warpgroups};
        @p bra CLEAR;
        barrier.cluster.arrive.release.aligned;
        barrier.cluster.wait.acquire.aligned;
        setp.ge.u32 p, warp, {plan.warps};
        @p bra LEAVE;

        {maps}
        min.u32 there, lane, {plan.blocks - 1};
        mapa.shared::cluster.u32 its, base, there;
        {exchange.for_each(plan, _state(plan))}
        mov.u32 k, 0;
        mov.u32 held, 32;
        mov.u32 side, 0;
        mov.f32 row, {_hex(0.0)};
        {clocks}
        {"mov.u32 then, %clock;" if plan.clocked else ""}
        {exchange.for_each(plan, _first_key())}
    """


def _first_key() -> str:
    """What a token is chosen by at first: the seed token, or any that is open."""
    return f"""
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


def _sum_of_energies(plan: Plan) -> str:
    """What is left of the warp's tokens before step k; nobody waits for it."""
    turns = "\n".join(
        f"""mov.b32 x0, sum;
        shfl.sync.bfly.b32 x1, x0, {distance}, 31, 0xffffffff;
        mov.b32 other, x1;
        add.rn.f32 sum, sum, other;"""
        for distance in (16, 8, 4, 2, 1)
    )
    second = f"""
        max.f32 other, energy1, {_hex(0.0)};
        add.rn.f32 sum, sum, other;
    """
    return f"""
        max.f32 sum, energy, {_hex(0.0)};
        {second if plan.each > 1 else ""}
        {turns}
        setp.eq.u32 p, lane, 0;
        mad.wide.u32 at, slot, 4, sums;
        @p st.global.f32 [at], sum;
    """


def _ask(plan: Plan) -> str:
    """For the pick's row of G, which is not needed before its column has come."""
    product = f"""
        mad.lo.u32 y1, pick, {plan.n}, place;
        mad.wide.u32 at, y1, 4, gram;
        ld.global.nc.f32 product, [at];
    """
    return f"""
        {exchange.for_each(plan, product)}
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
        for i in range(TOGETHER // 4)
    )
    zeros = "\n".join(f"mov.f32 s{i}, {_hex(0.0)};" for i in range(4))
    return f"""
        {zeros}
        add.u32 y0, base, {plan.at_column};
        mov.u32 y1, own;
        add.u32 y2, y0, bytes;
        TERMS:
        setp.ge.u32 p, y0, y2;
        @p bra SUMMED;
        {terms}
        add.u32 y0, y0, {4 * TOGETHER};
        add.u32 y1, y1, {4 * TOGETHER};
        bra TERMS;
        SUMMED:
        add.rn.f32 s0, s0, s1;
        add.rn.f32 s2, s2, s3;
        add.rn.f32 s0, s0, s2;
        {"mov.f32 known, s0;" if plan.each > 1 else ""}
    """


def _update(plan: Plan) -> str:
    """`kernels.advance` for this thread's token."""
    return f"""
        sub.rn.f32 row, product, {"known" if plan.each > 1 else "s0"};
        mul.rn.f32 row, row, root;
        selp.f32 row, row, {_hex(0.0)}, active;
        shl.b32 y1, k, 2;
        add.u32 y1, y1, own;
        @owns st.shared.f32 [y1], row;
        {_keep_row(plan) if plan.panel else ""}
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


def _keep_row(plan: Plan) -> str:
    """For the product after this launch; no thread of the launch reads it."""
    return f"""
        mad.lo.u32 y1, k, {plan.n}, place;
        mad.wide.u32 at, y1, 4, rows;
        @owns st.global.f32 [at], row;
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
    state = """
        mad.wide.u32 at, place, 4, drifts;
        @owns st.global.f32 [at], drift;
    """
    if plan.panel:
        # The score says no more than whether the token is open: the key is made of the rest.
        state = f"""
        mad.wide.u32 at, place, 4, after;
        min.f32 score, energy, {_hex(0.0)};
        @owns st.global.f32 [at], energy;
        @owns st.global.f32 [at + {4 * plan.n}], score;
        @owns st.global.f32 [at + {8 * plan.n}], drift;
    """
    return f"""
        {exchange.for_each(plan, state)}
        {clocks}
        LEAVE:
        barrier.cluster.arrive.release.aligned;
        barrier.cluster.wait.acquire.aligned;
    """
