"""The blocks of a cluster in the `mosaic_gpu` engine: what each owns, what they tell each other.

A block's shared memory holds, in this order: three mbarriers (the candidates of even steps, those
of odd ones, the column); the candidates of two steps; the winner's column; the columns of the
block's own tokens.

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

import re
from dataclasses import dataclass

WARP = 32

WARPGROUP = 128
"""Threads in a thread of Pallas."""

CANDIDATE = 16
"""Bytes of a message: key, token, energy, drift."""

CANDIDATES = 64
"""Bytes before them: the barriers."""

TOGETHER = 16
"""Entries of the factor that a turn of the innermost loop reads."""

MOST_THREADS = 1024
"""Of a block."""

TIER = 0x55555555
"""Keys of a tier. Scores below 1.4e13 have smaller bits, and those of a selection are below 4."""


@dataclass(frozen=True)
class Plan:
    """Who does what.

    Attributes:
        n: tokens, N.
        keep: K.
        blocks: of the cluster; more than 8 are not portable.
        warpgroups: of a block, 128 threads each.
        clocked: also write how long each part of the loop took.
        panel: a launch makes some of the picks, `keep` of them. The rows of the factor that earlier
            launches made are no part of it, since G comes without what they explain; the state of
            the tokens is read and written, and so are, for the matrix product that follows, the
            rows that this launch makes.
        each: tokens of a thread, neighbours: 1 or 2.
    """

    n: int
    keep: int
    blocks: int = 8
    warpgroups: int = 1
    clocked: bool = False
    panel: bool = False
    each: int = 1

    @property
    def tokens(self) -> int:
        """That a block owns."""
        return -(-self.n // self.blocks)

    @property
    def threads(self) -> int:
        """Of a block that own tokens."""
        return -(-self.tokens // self.each)

    @property
    def warps(self) -> int:
        """Of a block that own tokens."""
        return -(-self.threads // WARP)

    @property
    def senders(self) -> int:
        """Warps of the cluster that own tokens."""
        return self.blocks * self.warps

    @property
    def share(self) -> int:
        """Candidates that a lane looks at."""
        return -(-self.senders // WARP)

    @property
    def column(self) -> int:
        """Entries of a token's column, up to a whole turn of the innermost loop."""
        return -(-self.keep // TOGETHER) * TOGETHER

    @property
    def pitch(self) -> int:
        """Bytes from a column to the next: an odd number of 16, so that lanes use all banks."""
        return 4 * self.column + 16

    @property
    def at_column(self) -> int:
        """Where the winner's column begins: after the candidates of two steps."""
        return CANDIDATES + 2 * self.share * WARP * CANDIDATE

    @property
    def at_factor(self) -> int:
        """Where the columns of the block's own tokens begin."""
        return self.at_column + 4 * self.column

    @property
    def shared_bytes(self) -> int:
        """What a block needs in all."""
        return self.at_factor + self.threads * self.each * self.pitch

    @property
    def sound(self) -> bool:
        """Whether threads and messages are enough; the memory is not looked at."""
        threads = self.warpgroups * WARPGROUP
        return (
            2 <= self.blocks <= 16
            and self.threads <= threads <= MOST_THREADS
            and self.each in (1, 2)
        )


def _expect(barrier: str, size: int | str) -> str:
    """Say how many bytes this phase of a barrier waits for."""
    return f"@leads mbarrier.arrive.expect_tx.shared::cta.b64 _, [{barrier}], {size};"


def _send(to: str, words: str, barrier: str) -> str:
    """Four words into the memory of a block."""
    return (
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"
        f" [{to}], {{{words}}}, [{barrier}];"
    )


def wait(name: str, barrier: str, parity: str) -> str:
    """Until this phase of a barrier has ended."""
    return f"""
        {name}:
        mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [{barrier}], {parity};
        @!p bra {name};
    """


PRIVATE = (
    "token", "place", "own", "owns", "square", "share", "gate", "energy", "drift", "score", "key",
    "product", "known", "row", "TERMS", "SUMMED",
)  # fmt: skip
"""Registers of each token that a thread owns, and labels of what is done for each."""


def for_each(plan: Plan, text: str) -> str:
    """The same for every token of a thread; the registers of the second end with 1."""
    names = re.compile(rf"\b({'|'.join(PRIVATE)})\b")
    return "\n".join([text, *(names.sub(rf"\g<1>{i}", text) for i in range(1, plan.each))])


def who(plan: Plan) -> str:
    """Which tokens a thread owns."""
    if plan.each > 1:
        return "\n".join(
            f"""
            shl.b32 x0, tid, 1;
            add.u32 x0, x0, {i};
            mad.lo.u32 token{name}, rank, {plan.tokens}, x0;
            setp.lt.u32 owns{name}, x0, {plan.tokens};
            setp.lt.and.u32 owns{name}, token{name}, {plan.n}, owns{name};
            """
            for i, name in enumerate(("", "1"))
        )
    return f"""
        mad.lo.u32 token, rank, {plan.tokens}, tid;
        setp.lt.u32 owns, tid, {plan.tokens};
        setp.lt.and.u32 owns, token, {plan.n}, owns;
    """


def where(plan: Plan) -> str:
    """Where the tokens' numbers are in vectors, and their columns in shared memory."""
    second = f"""
        min.u32 place1, token1, {plan.n - 1};
        add.u32 own1, own, {plan.threads * plan.pitch};
    """
    return f"""
        min.u32 place, token, {plan.n - 1};
        min.u32 own, tid, {plan.threads - 1};
        mad.lo.u32 own, own, {plan.pitch}, base;
        add.u32 own, own, {plan.at_factor};
        {second if plan.each > 1 else ""}
    """


def _best() -> str:
    """The better of a thread's two tokens; the first wins a tie."""
    return """
        setp.gt.u32 p, key1, key;
        selp.b32 y0, key1, key, p;
        selp.b32 x2, token1, token, p;
        selp.f32 sum, energy1, energy, p;
        mov.b32 x0, sum;
        selp.f32 sum, drift1, drift, p;
        mov.b32 x1, sum;
    """


def candidate(plan: Plan) -> str:
    """Find the warp's best token, and tell every block."""
    size = plan.share * WARP * CANDIDATE
    key, both, its = "key", "", "add.u32 ci, first, m;"
    state = """
        mov.b32 x0, energy;
        mov.b32 x1, drift;
    """
    if plan.each > 1:
        key, both, state = "y0", _best(), ""
        its = "shfl.sync.idx.b32 ci, x2, m, 31, 0xffffffff;"
    return f"""
        bar.warp.sync 0xffffffff;
        and.b32 odd, k, 1;
        shr.u32 parity, k, 1;
        and.b32 parity, parity, 1;
        {both}
        redux.sync.max.u32 best, {key}, 0xffffffff;
        setp.eq.u32 p, {key}, best;
        vote.sync.ballot.b32 votes, p, 0xffffffff;
        brev.b32 votes, votes;
        clz.b32 m, votes;
        {state}
        shfl.sync.idx.b32 ce, x0, m, 31, 0xffffffff;
        shfl.sync.idx.b32 cd, x1, m, 31, 0xffffffff;
        {its}
        min.u32 ci, ci, {plan.n - 1};
        shl.b32 offset, odd, 3;
        add.u32 mine, base, offset;
        add.u32 y0, its, offset;
        mul.lo.u32 buffer, odd, {size};
        shl.b32 y1, slot, 4;
        add.u32 y1, y1, buffer;
        add.u32 y1, y1, its;
        {_expect("mine", plan.senders * CANDIDATE)}
        @sends {_send(f"y1 + {CANDIDATES}", "best, ci, ce, cd", "y0")}
    """


def winner(plan: Plan) -> str:
    """The same in every warp of the cluster."""
    others = "\n".join(
        f"""
        ld.shared.v4.b32 {{y0, y1, y2, y3}}, [source + {CANDIDATES + i * CANDIDATE}];
        setp.gt.u32 q, y0, x0;
        selp.b32 offset, {i}, {"offset" if i > 1 else 0}, q;
        selp.b32 x0, y0, x0, q;
        selp.b32 x1, y1, x1, q;
        selp.b32 x2, y2, x2, q;
        selp.b32 x3, y3, x3, q;
        """
        for i in range(1, plan.share)
    )
    times = "shl.b32 m, m, 1;" if plan.share == 2 else f"mul.lo.u32 m, m, {plan.share};"
    which = f"""
        shfl.sync.idx.b32 offset, offset, m, 31, 0xffffffff;
        {times}
        add.u32 m, m, offset;
    """
    return f"""
        mad.lo.u32 source, lane, {plan.share * CANDIDATE}, base;
        add.u32 source, source, buffer;
        ld.shared.v4.b32 {{x0, x1, x2, x3}}, [source + {CANDIDATES}];
        {others}
        redux.sync.max.u32 top, x0, 0xffffffff;
        setp.eq.u32 p, x0, top;
        vote.sync.ballot.b32 votes, p, 0xffffffff;
        brev.b32 votes, votes;
        clz.b32 m, votes;
        shfl.sync.idx.b32 pick, x1, m, 31, 0xffffffff;
        shfl.sync.idx.b32 x2, x2, m, 31, 0xffffffff;
        shfl.sync.idx.b32 x3, x3, m, 31, 0xffffffff;
        {which if plan.share > 1 else ""}
        mov.b32 its_energy, x2;
        mov.b32 its_drift, x3;
        setp.ne.u32 left, top, 0;
        setp.gt.u32 active, top, {TIER};
        setp.eq.u32 owner, m, slot;
    """


def send_column(plan: Plan) -> str:
    """By the warp that owns the winner, to every block, in whole turns of the innermost loop."""
    sends = "\n".join(
        f"""
        add.u32 y0, peer{i}, offset;
        {_send(f"y0 + {plan.at_column}", "x0, x1, x2, x3", f"peer{i} + 16")}"""
        for i in range(plan.blocks)
    )
    place = """
        sub.u32 source, pick, first;
        shl.b32 y1, warp, 5;
        add.u32 source, source, y1;
    """
    if plan.each > 1:  # first the columns of all first tokens
        place = f"""
        mul.lo.u32 y1, rank, {plan.tokens};
        sub.u32 source, pick, y1;
        and.b32 y1, source, 1;
        shr.u32 source, source, 1;
        mad.lo.u32 source, y1, {plan.threads}, source;
    """
    return f"""
        add.u32 bytes, k, {TOGETHER - 1};
        and.b32 bytes, bytes, {(1 << 32) - TOGETHER};
        shl.b32 bytes, bytes, 2;
        {_expect("base + 16", "bytes")}
        @!owner bra SENT;
        {place}
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
    """
