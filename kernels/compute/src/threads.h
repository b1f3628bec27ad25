// One pool of threads for the process.
#pragma once
#include <cstdint>
#include <functional>

namespace jg {

// libgomp's entry point for a parallel region: runs fn(data) on `count` threads and waits.
using Fork = void (*)(void (*fn)(void*), void* data, unsigned count, unsigned flags);

// Run on the OpenMP runtime behind `fork` (torch's own, so that the two never compete for cores), or on our
// own threads where there is none. `count` < 1: as many as the machine has.
void use_threads(Fork fork, int count);
int thread_count();

// Calls piece(i) for i in [0, count), spread over the threads in runs of `grain`; returns when all are done.
void for_each(int64_t count, int64_t grain, const std::function<void(int64_t)>& piece);

}  // namespace jg
