import asyncio

import pytest
from cilium_agent.ipcaches import Change, Entry, IPCache, Source


class Kernel:
    def __init__(self):
        self.rows = {}
        self.error = None

    async def __call__(self, upserts, deletes):
        if self.error:
            raise self.error
        self.rows.update(upserts)
        for prefix in deletes:
            del self.rows[prefix]


async def test_the_strongest_claim_wins_and_the_next_shows_when_it_goes():
    kernel = Kernel()
    cache = IPCache(kernel)
    cache.upsert("10.0.0.1", Source.KVSTORE, Entry(7))
    cache.upsert("10.0.0.1/32", Source.GENERATED, Entry(8))
    cache.upsert("10.0.0.1", Source.LOCAL, Entry(9))
    seen = []
    for _ in range(2):
        await cache.flush()
        seen.append(kernel.rows["10.0.0.1/32"].identity)
        cache.delete("10.0.0.1", Source.LOCAL)
    cache.delete("10.0.0.1", Source.KVSTORE)
    await cache.flush()
    seen.append(kernel.rows["10.0.0.1/32"].identity)
    cache.delete("10.0.0.1", Source.GENERATED)
    await cache.flush()
    assert (seen, kernel.rows) == ([9, 7, 8], {})


async def test_a_failed_flush_is_made_up_for_by_the_next():
    kernel = Kernel()
    cache = IPCache(kernel)
    told = []
    cache.listen(told.extend)
    cache.upsert("10.0.0.1", Source.LOCAL, Entry(9))
    kernel.error = OSError("full")
    with pytest.raises(OSError, match="full"):
        await cache.flush()
    assert told == []
    kernel.error = None
    await cache.flush()
    assert [Change("10.0.0.1/32", None, Entry(9))] == told


async def test_restored_rows_stay_untouched_until_dropped():
    kernel = Kernel()
    kernel.rows = {"10.0.0.1/32": Entry(1), "10.0.0.2/32": Entry(2)}
    cache = IPCache(kernel)
    cache.restore(kernel.rows)
    cache.upsert("10.0.0.1", Source.KVSTORE, Entry(1))
    await cache.flush()
    assert len(kernel.rows) == 2
    cache.drop_restored()
    await cache.flush()
    assert {"10.0.0.1/32": Entry(1)} == kernel.rows


async def test_concurrent_flushes_leave_the_last_word_in_the_kernel():
    kernel = Kernel()
    cache = IPCache(kernel)
    for number in range(50):
        cache.upsert("10.0.0.1", Source.LOCAL, Entry(number + 1))
        await asyncio.gather(cache.flush(), cache.flush())
    assert kernel.rows["10.0.0.1/32"].identity == 50
