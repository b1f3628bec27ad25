// One pool of threads for the process.
#pragma once
#include <cstdint>
#include <functional>

namespace jg {

// How many threads work at once, the caller included. `count` < 1: as many as the machine has.
void use_threads(int count);
int thread_count();

// Calls piece(i) for i in [0, count), spread over the threads in runs of `grain`; returns when all are done.
//
// A thread that the system has put aside delays nobody: the others take its share, and the caller only waits
// for pieces that someone has begun. (An OpenMP region waits for every thread; with another program on one of
// two cores that made a decode step eight times slower.)
void for_each(int64_t count, int64_t grain, const std::function<void(int64_t)>& piece);

}  // namespace jg
