#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace jg {
namespace {

// Our own threads, for processes without libgomp. Workers sleep between jobs; they are never joined, because
// a static destructor must not wait for threads that a forked child does not have.
class Pool {
 public:
  void run(unsigned count, void (*fn)(void*), void* data) {
    std::unique_lock<std::mutex> one_job(jobs_);
    while (workers_ + 1 < count) {
      std::thread([this] { work(); }).detach();
      workers_++;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      fn_ = fn;
      data_ = data;
      generation_++;
      running_ = workers_;
    }
    wake_.notify_all();
    fn(data);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void work() {
    uint64_t seen = 0;
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      lock.unlock();
      fn_(data_);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex jobs_, mutex_;
  std::condition_variable wake_, done_;
  void (*fn_)(void*) = nullptr;
  void* data_ = nullptr;
  uint64_t generation_ = 0;
  unsigned workers_ = 0, running_ = 0;
};

Pool& own_pool() {
  static Pool* pool = new Pool;
  return *pool;
}

void own_fork(void (*fn)(void*), void* data, unsigned count, unsigned) { own_pool().run(count, fn, data); }

std::atomic<Fork> g_fork{own_fork};
std::atomic<int> g_threads{0};

struct Job {
  std::atomic<int64_t> next{0};
  int64_t count, grain;
  const std::function<void(int64_t)>* piece;
};

void take_pieces(void* data) {
  Job& job = *static_cast<Job*>(data);
  for (;;) {
    const int64_t first = job.next.fetch_add(job.grain, std::memory_order_relaxed);
    if (first >= job.count) return;
    const int64_t last = first + job.grain < job.count ? first + job.grain : job.count;
    for (int64_t i = first; i < last; i++) (*job.piece)(i);
  }
}

}  // namespace

void use_threads(Fork fork, int count) {
  g_fork = fork ? fork : own_fork;
  g_threads = count > 0 ? count : int(std::thread::hardware_concurrency());
}

int thread_count() {
  if (g_threads < 1) g_threads = int(std::thread::hardware_concurrency());
  return g_threads < 1 ? 1 : int(g_threads);
}

void for_each(int64_t count, int64_t grain, const std::function<void(int64_t)>& piece) {
  Job job;
  job.count = count;
  job.grain = grain < 1 ? 1 : grain;
  job.piece = &piece;
  const int64_t runs = (count + job.grain - 1) / job.grain;
  const int64_t threads = runs < thread_count() ? runs : thread_count();
  if (threads <= 1)
    take_pieces(&job);
  else
    g_fork.load()(take_pieces, &job, unsigned(threads), 0);
}

}  // namespace jg
