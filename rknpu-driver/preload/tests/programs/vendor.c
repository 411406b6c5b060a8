/* Uses Rockchip's driver the way a program does that has nothing but its header. One argument names what to do. */
#include "product.h"
#include "uapi.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *NODE = "/dev/dri/renderD128";

struct memory {
  struct rknpu_mem_create create;
  void *bytes;
};

static struct memory make(int fd, uint64_t size, uint32_t flags) {
  struct memory memory = {.create = {.flags = flags | RKNPU_MEM_NON_CONTIGUOUS | RKNPU_MEM_IOMMU, .size = size}};
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_MEM_CREATE, &memory.create) == 0);
  MUST(memory.create.handle != 0 && memory.create.dma_addr != 0 && memory.create.size % 4096 == 0);
  struct rknpu_mem_map map = {.handle = memory.create.handle};
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_MEM_MAP, &map) == 0);
  memory.bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)map.offset);
  MUST(memory.bytes != MAP_FAILED);
  return memory;
}

static int sync_memory(int fd, const struct memory *memory, uint32_t flags) {
  struct rknpu_mem_sync sync = {.flags = flags, .obj_addr = memory->create.obj_addr, .size = memory->create.size};
  return ioctl(fd, DRM_IOCTL_RKNPU_MEM_SYNC, &sync);
}

static void destroy(int fd, struct memory *memory) {
  struct rknpu_mem_destroy gone = {.handle = memory->create.handle, .obj_addr = memory->create.obj_addr};
  MUST(munmap(memory->bytes, memory->create.size) == 0);
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_MEM_DESTROY, &gone) == 0);
}

struct product {
  struct memory input, weights, output, stream, tasks;
};

static struct product make_product(int fd) {
  struct product product = {
      .input = make(fd, INPUT_BYTES, RKNPU_MEM_CACHEABLE),
      .weights = make(fd, WEIGHT_BYTES, RKNPU_MEM_CACHEABLE),
      .output = make(fd, OUTPUT_BYTES, RKNPU_MEM_CACHEABLE),
      .stream = make(fd, sizeof STREAM, 0),
      .tasks = make(fd, sizeof(struct rknpu_task), RKNPU_MEM_KERNEL_MAPPING),
  };
  pack_input(product.input.bytes);
  pack_weights(product.weights.bytes);
  pack_stream(product.stream.bytes, (uint32_t)product.input.create.dma_addr, (uint32_t)product.weights.create.dma_addr,
              (uint32_t)product.output.create.dma_addr);
  *(struct rknpu_task *)product.tasks.bytes = (struct rknpu_task){
      .enable_mask = 0xd,
      .int_mask = 0x300,
      .int_clear = 0x1ffff,
      .regcfg_amount = STREAM_WORDS - TAIL_WORDS,
      .regcmd_addr = product.stream.create.dma_addr,
  };
  MUST(sync_memory(fd, &product.input, RKNPU_MEM_SYNC_TO_DEVICE) == 0);
  MUST(sync_memory(fd, &product.weights, RKNPU_MEM_SYNC_TO_DEVICE) == 0);
  return product;
}

static struct rknpu_submit submission(const struct product *product, int core) {
  struct rknpu_submit submit = {
      .flags = RKNPU_JOB_PC | RKNPU_JOB_PINGPONG,
      .timeout = 6000,
      .task_number = 1,
      .task_obj_addr = product->tasks.create.obj_addr,
      .core_mask = 1u << core,
      .fence_fd = -1,
  };
  submit.subcore_task[core].task_number = 1;
  return submit;
}

static void multiply(int fd, int core) {
  struct product product = make_product(fd);
  struct rknpu_submit submit = submission(&product, core);
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit) == 0);
  MUST(submit.task_counter == 1 && submit.hw_elapse_time > 0);
  MUST((((struct rknpu_task *)product.tasks.bytes)->int_status & 0x300) != 0);
  MUST(sync_memory(fd, &product.output, RKNPU_MEM_SYNC_FROM_DEVICE) == 0);
  MUST(wrong_results(product.output.bytes) == 0);
  destroy(fd, &product.input);
  destroy(fd, &product.weights);
  destroy(fd, &product.output);
  destroy(fd, &product.stream);
  destroy(fd, &product.tasks);
}

/* Whether a driver's request fails on this descriptor with this errno, or with an emulator's that does not know the request. */
static int is_not_the_device(int fd, int wanted) {
  struct rknpu_action action = {.flags = RKNPU_GET_DRV_VERSION};
  errno = 0;
  return ioctl(fd, DRM_IOCTL_RKNPU_ACTION, &action) < 0 && (errno == wanted || errno == ENOSYS);
}

static void product(int fd) {
  for (int core = 0; core < 3; core++) multiply(fd, core);
}

/* The errnos of calls that are wrong, and the traps. */
static void errors(int fd) {
  struct rknpu_action action = {.flags = RKNPU_GET_DRV_VERSION};
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_ACTION, &action) == 0 && action.value == 908);
  action = (struct rknpu_action){.flags = RKNPU_GET_DT_RD_AMOUNT, .value = 77};
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_ACTION, &action) == 0 && action.value == 77);
  action = (struct rknpu_action){.flags = RKNPU_SET_FREQ, .value = 600000000};
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_ACTION, &action), EINVAL);
  action.flags = 99;
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_ACTION, &action), EINVAL);

  FAILS(ioctl(fd, DRM_IOWR(DRM_COMMAND_BASE + 6, struct rknpu_action), &action), EINVAL);
  FAILS(ioctl(fd, _IOWR('x', DRM_COMMAND_BASE, struct rknpu_action), &action), ENOTTY);
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_ACTION, NULL), EFAULT);
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_ACTION, (void *)8), EFAULT);
  MUST(is_not_the_device(-1, EBADF));
  FAILS(isatty(fd) - 1, ENOTTY);

  struct rknpu_mem_create nothing = {.flags = RKNPU_MEM_NON_CONTIGUOUS};
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_MEM_CREATE, &nothing), EINVAL);
  struct rknpu_mem_create far = {.flags = RKNPU_MEM_NON_CONTIGUOUS, .size = 4096, .iommu_domain_id = 16};
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_MEM_CREATE, &far), EINVAL);
  struct rknpu_mem_create huge = {.size = 5ull << 30};
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_MEM_CREATE, &huge), ENOMEM);
  struct rknpu_mem_map map = {.handle = 4711};
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_MEM_MAP, &map), ENOENT);
  struct rknpu_mem_destroy gone = {.handle = 4711};
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_MEM_DESTROY, &gone), EINVAL);

  /* A live handle gives that object again, whatever else is asked for. */
  struct memory first = make(fd, 8192, RKNPU_MEM_CACHEABLE);
  struct rknpu_mem_create again = {.handle = first.create.handle, .size = 1 << 20};
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_MEM_CREATE, &again) == 0);
  MUST(again.obj_addr == first.create.obj_addr && again.size == 8192);
  /* Only cached memory can be synced. */
  struct memory uncached = make(fd, 4096, 0);
  FAILS(sync_memory(fd, &uncached, RKNPU_MEM_SYNC_TO_DEVICE), EINVAL);
  struct rknpu_mem_sync null = {.flags = RKNPU_MEM_SYNC_TO_DEVICE};
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_MEM_SYNC, &null), EINVAL);
  MUST(mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
  map.handle = first.create.handle;
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_MEM_MAP, &map) == 0);
  MUST(mmap(NULL, 12288, PROT_READ, MAP_SHARED, fd, (off_t)map.offset) == MAP_FAILED && errno == EINVAL);

  struct product product = make_product(fd);
  struct rknpu_submit submit = submission(&product, 0);
  submit.flags = 0;
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit), EINVAL);
  submit = submission(&product, 0);
  submit.core_mask = 8;
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit), EINVAL);
  submit.core_mask = 5;
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit), EINVAL);
  submit = submission(&product, 0);
  submit.task_number = 0;
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit), EINVAL);
  /* The mask of the last task must be the status as the driver widens it, or the job never ends. */
  ((struct rknpu_task *)product.tasks.bytes)->int_mask = 0x100;
  submit = submission(&product, 0);
  submit.timeout = 20;
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit), ETIMEDOUT);
  MUST(submit.task_counter == 1);
  /* The time-out reset the device, and it works again. */
  ((struct rknpu_task *)product.tasks.bytes)->int_mask = 0x300;
  submit = submission(&product, 0);
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit) == 0);
  MUST(wrong_results(product.output.bytes) == 0);
}

/* Descriptors: what kind of file, duplicates, polling, dma-bufs, fork. */
static void files(int fd) {
  struct stat by_path, by_fd;
  MUST(access(NODE, R_OK | W_OK) == 0 && stat(NODE, &by_path) == 0 && fstat(fd, &by_fd) == 0);
  MUST(S_ISCHR(by_path.st_mode) && S_ISCHR(by_fd.st_mode));
  MUST(major(by_fd.st_rdev) == 226 && minor(by_fd.st_rdev) == 128 && by_path.st_rdev == by_fd.st_rdev);
  FAILS(open(NODE, O_RDWR | O_DIRECTORY), ENOTDIR);

  char name[16] = {0};
  struct drm_version version = {.name = name, .name_len = 3};
  MUST(ioctl(fd, DRM_IOCTL_VERSION, &version) == 0);
  MUST(version.version_minor == 9 && version.name_len == 5 && strcmp(name, "rkn") == 0);

  struct pollfd waiting = {.fd = fd, .events = POLLIN | POLLOUT};
  MUST(poll(&waiting, 1, 0) == 0);

  int copy = dup(fd), copy2 = fcntl(fd, F_DUPFD_CLOEXEC, 200), copy3 = dup2(fd, 150);
  MUST(copy > fd && copy2 >= 200 && copy3 == 150 && close(copy) == 0);
  struct rknpu_action action = {.flags = RKNPU_GET_HW_VERSION};
  MUST(is_not_the_device(copy, EBADF));
  MUST(ioctl(copy2, DRM_IOCTL_RKNPU_ACTION, &action) == 0 && ioctl(copy3, DRM_IOCTL_RKNPU_ACTION, &action) == 0);
  int null = open("/dev/null", O_RDWR);
  MUST(null >= 0 && dup2(null, copy3) == copy3);
  MUST(is_not_the_device(copy3, ENOTTY));

  struct memory memory = make(fd, 4096, RKNPU_MEM_CACHEABLE);
  strcpy(memory.bytes, "shared");
  struct drm_prime_handle prime = {.handle = memory.create.handle, .flags = DRM_CLOEXEC | DRM_RDWR};
  MUST(ioctl(fd, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime) == 0);
  char *seen = mmap(NULL, 4096, PROT_READ, MAP_SHARED, prime.fd, 0);
  MUST(seen != MAP_FAILED && strcmp(seen, "shared") == 0 && lseek(prime.fd, 0, SEEK_END) == 4096);
  int other = open(NODE, O_RDWR | O_CLOEXEC);
  MUST(other >= 0);
  struct drm_prime_handle back = {.fd = prime.fd};
  MUST(ioctl(other, DRM_IOCTL_PRIME_FD_TO_HANDLE, &back) == 0);
  struct rknpu_mem_create found = {.handle = back.handle};
  MUST(ioctl(other, DRM_IOCTL_RKNPU_MEM_CREATE, &found) == 0 && found.dma_addr == memory.create.dma_addr);
  back.fd = null;
  FAILS(ioctl(other, DRM_IOCTL_PRIME_FD_TO_HANDLE, &back), EINVAL);
  struct drm_gem_close gem = {.handle = found.handle};
  MUST(ioctl(other, DRM_IOCTL_GEM_CLOSE, &gem) == 0);
  FAILS(ioctl(other, DRM_IOCTL_GEM_CLOSE, &gem), EINVAL);
  MUST(close(other) == 0);

  pid_t child = fork();
  if (child == 0) {
    /* A child has a device of its own. */
    if (!is_not_the_device(fd, ENOTTY)) _exit(2);
    int own = open(NODE, O_RDWR);
    if (own < 0) _exit(3);
    product(own);
    _exit(close(own) == 0 ? 0 : 4);
  }
  int status;
  MUST(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* A child in its parent's memory that closes and replaces what it inherited, as programs do before exec. */
static __attribute__((noinline)) pid_t close_in_a_child(int fd, int copy) {
  pid_t child = vfork();
  if (child == 0) _exit(close(fd) == 0 && dup2(STDERR_FILENO, copy) == copy ? 0 : 2);
  return child;
}

/* What a child made by vfork does to its descriptors is not done to its parent's. */
static void vforks(int fd) {
  int copy = dup(fd), status;
  pid_t child = close_in_a_child(fd, copy);
  MUST(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  struct rknpu_action action = {.flags = RKNPU_GET_HW_VERSION};
  MUST(ioctl(copy, DRM_IOCTL_RKNPU_ACTION, &action) == 0 && close(copy) == 0);
  product(fd);
}

/* Opens, multiplies on one core, duplicates and closes, again and again. */
static void *work(void *core) {
  for (int again = 0; again < 10; again++) {
    int fd = open(NODE, O_RDWR | O_CLOEXEC);
    MUST(fd >= 0);
    int copy = dup(fd);
    MUST(copy >= 0 && close(fd) == 0);
    multiply(copy, (int)(intptr_t)core);
    MUST(close(copy) == 0);
  }
  return NULL;
}

/* Threads share the device, each with descriptors of its own; two of them share a core. */
static void threads(int fd) {
  pthread_t workers[4];
  for (intptr_t i = 0; i < 4; i++) MUST(pthread_create(&workers[i], NULL, work, (void *)(i % 3)) == 0);
  for (int i = 0; i < 4; i++) MUST(pthread_join(workers[i], NULL) == 0);
  product(fd);
}

/* What the injected faults of the environment do: the second allocation fails, the first job hangs, the third takes the device away. */
static void faults(int fd) {
  struct memory memory = make(fd, 4096, 0);
  struct rknpu_mem_create refused = {.size = 4096};
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_MEM_CREATE, &refused), ENOMEM);
  struct product product = make_product(fd);
  struct rknpu_submit submit = submission(&product, 1);
  submit.timeout = 30;
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit), ETIMEDOUT);
  submit = submission(&product, 1);
  MUST(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit) == 0 && wrong_results(product.output.bytes) == 0);
  submit = submission(&product, 1);
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit), ENODEV);
  FAILS(ioctl(fd, DRM_IOCTL_RKNPU_SUBMIT, &submit), ENODEV);
  FAILS(sync_memory(fd, &product.input, RKNPU_MEM_SYNC_TO_DEVICE), ENODEV);
  (void)memory;
  int anew = open(NODE, O_RDWR);
  MUST(anew >= 0);
  multiply(anew, 2);
}

int main(int count, char **arguments) {
  MUST(count == 2);
  int fd = open(NODE, O_RDWR | O_CLOEXEC);
  MUST(fd >= 0);
  const struct {
    const char *name;
    void (*run)(int);
  } modes[] = {{"product", product}, {"errors", errors}, {"files", files}, {"vforks", vforks}, {"threads", threads}, {"faults", faults}};
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
    if (strcmp(arguments[1], modes[i].name) == 0) {
      modes[i].run(fd);
      MUST(close(fd) == 0);
      puts("well");
      return 0;
    }
  return 64;
}
