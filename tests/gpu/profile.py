"""Where a step's time goes: the most expensive operations of one `go` step, and how often the host waits."""

from typing import Any

from tests.gpu import material


def run(options: Any) -> dict[str, Any]:
    """Return the figures."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = options.device == "cuda"
    size, vocabulary, longest = (options.size or "llama-3.2-1b", 128256, 1024) if on_gpu else ("tiny", 2000, 96)
    data = material.rows(24, longest, vocabulary)
    net = material.model(size, vocabulary, options.device)
    made = material.trainer(net, data, options.device, lengths=True, padding_free=True, max_steps=3)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as seen:
        made.train()
    averages = seen.key_averages()
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    top = sorted(averages, key=lambda event: -getattr(event, by, 0))[:10]
    waits = sum(
        event.count
        for event in averages
        if event.key in ("aten::item", "cudaStreamSynchronize", "aten::_local_scalar_dense")
    )
    figures = [(event.key[:60], f"{getattr(event, by) / 1000:.1f} ms", f"{event.count} times") for event in top]
    return {"figures": [*figures, ("waits of the host in three steps", str(waits), "")], "skipped": []}
