"""The metrics page. Names and labels are fixed: nothing of a query or a document stands in them."""

from __future__ import annotations

import os
import time

from qmd.serve.service.service import Service

HELPS = {
    "qmd_requests_total": "Requests by route and status.",
    "qmd_request_seconds": "Time of a request from its first byte to the end of the answer.",
    "qmd_model_unloads_total": "Models let go after being idle.",
}


def write_metrics(service: Service) -> str:
    batcher = service.embedder.batcher
    gauges = {
        "qmd_searches_running": ("Searches under way.", service.searches.running),
        "qmd_searches_waiting": ("Searches in line.", service.searches.depth),
        "qmd_answers_running": ("Answers being written.", service.answers.running),
        "qmd_event_listeners": ("Open event streams.", service.events.listeners),
        "qmd_models_loaded": ("Models in memory.", sum(k.loaded for k in service.kept)),
        "qmd_model_loads": ("Times a model was loaded.", sum(k.loads for k in service.kept)),
        "qmd_embed_batches": ("Calls of the embedding model.", batcher.batches),
        "qmd_embed_requests": ("Requests served by those calls.", batcher.asks),
        "qmd_embed_texts": ("Texts embedded by those calls.", batcher.texts),
        "qmd_ready": ("1 when what a search needs is loaded.", int(service.ready)),
        "qmd_uptime_seconds": ("Since the service started.", time.time() - service.started),
        "process_cpu_seconds": ("Processor time of the process.", time.process_time()),
        "process_resident_memory_bytes": ("Memory of the process.", resident_bytes()),
    }
    return service.counters.text({name: (told, float(v)) for name, (told, v) in gauges.items()}, HELPS)


def resident_bytes() -> int:
    """Resident memory; 0 where /proc does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
