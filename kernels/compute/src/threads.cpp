#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#define JG_PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define JG_PAUSE() asm volatile("yield")
#else
#define JG_PAUSE() ((void)0)
#endif

namespace jg {
namespace {

// Between two products of a decode step lie some tens of microseconds of small operations: a worker that looks
// for work a little longer than that saves being woken for each.
constexpr std::chrono::microseconds kPatience{100};

struct Job {
  int64_t count, grain;
  const std::function<void(int64_t)>* piece;  // the caller's; only touched while a run is taken
  std::atomic<int64_t> next{0}, done{0};

  // Runs until nothing is left to take. A worker that comes late finds nothing.
  void work() {
    for (;;) {
      const int64_t first = next.fetch_add(grain, std::memory_order_relaxed);
      if (first >= count) return;
      const int64_t last = first + grain < count ? first + grain : count;
      for (int64_t i = first; i < last; i++) (*piece)(i);
      done.fetch_add(last - first, std::memory_order_release);
    }
  }

  bool finished() const { return done.load(std::memory_order_acquire) == count; }
};

class Pool {
 public:
  void run(int threads, const std::shared_ptr<Job>& job) {
    while (workers_ < threads - 1) {
      // Never joined: a static destructor must not wait for threads that a forked child does not have.
      std::thread([this] { serve(); }).detach();
      workers_++;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job->work();
    while (!job->finished()) JG_PAUSE();
  }

  // One job at a time; a second caller works alone meanwhile.
  std::mutex busy;

 private:
  void serve() {
    uint64_t seen = 0;
    for (;;) {
      const auto until = std::chrono::steady_clock::now() + kPatience;
      while (epoch_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < until)
        for (int i = 0; i < 16; i++) JG_PAUSE();
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
      seen = epoch_.load(std::memory_order_relaxed);
      const std::shared_ptr<Job> job = job_;
      lock.unlock();
      job->work();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};
  std::shared_ptr<Job> job_;
  int workers_ = 0;
};

Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

std::atomic<int> g_threads{0};

}  // namespace

void use_threads(int count) {
  if (count < 1) count = int(std::thread::hardware_concurrency());
  g_threads = count < 1 ? 1 : count;
}

int thread_count() {
  if (g_threads < 1) use_threads(0);
  return g_threads;
}

void for_each(int64_t count, int64_t grain, const std::function<void(int64_t)>& piece) {
  if (grain < 1) grain = 1;
  std::unique_lock<std::mutex> lock(pool().busy, std::try_to_lock);
  if (thread_count() == 1 || count <= grain || !lock.owns_lock()) {
    for (int64_t i = 0; i < count; i++) piece(i);
    return;
  }
  const auto job = std::make_shared<Job>();
  job->count = count;
  job->grain = grain;
  job->piece = &piece;
  pool().run(thread_count(), job);
}

}  // namespace jg
