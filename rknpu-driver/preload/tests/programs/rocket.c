/* Uses mainline's driver the way a program does that has nothing but its header. One argument names what to do. */
#include "product.h"
#include "uapi.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static const char *NODE = "/dev/accel/accel0";

struct object {
  struct drm_rocket_create_bo create;
  void *bytes;
};

static struct object make(int fd, uint32_t size) {
  struct object object = {.create = {.size = size}};
  MUST(ioctl(fd, DRM_IOCTL_ROCKET_CREATE_BO, &object.create) == 0);
  object.bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)object.create.offset);
  MUST(object.bytes != MAP_FAILED);
  return object;
}

/* Waiting is until a moment of the monotonic clock. */
static int prepare(int fd, const struct object *object, int64_t from_now_ns) {
  struct timespec now;
  MUST(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
  struct drm_rocket_prep_bo prep = {
      .handle = object->create.handle,
      .timeout_ns = now.tv_sec * 1000000000ll + now.tv_nsec + from_now_ns,
  };
  return ioctl(fd, DRM_IOCTL_ROCKET_PREP_BO, &prep);
}

static int finish(int fd, const struct object *object) {
  struct drm_rocket_fini_bo fini = {.handle = object->create.handle};
  return ioctl(fd, DRM_IOCTL_ROCKET_FINI_BO, &fini);
}

struct product {
  struct object input, weights, output, stream;
};

static struct product make_product(int fd) {
  struct product product = {
      .input = make(fd, INPUT_BYTES),
      .weights = make(fd, WEIGHT_BYTES),
      .output = make(fd, OUTPUT_BYTES),
      .stream = make(fd, sizeof STREAM),
  };
  pack_input(product.input.bytes);
  pack_weights(product.weights.bytes);
  pack_stream(product.stream.bytes, (uint32_t)product.input.create.dma_address, (uint32_t)product.weights.create.dma_address,
              (uint32_t)product.output.create.dma_address);
  MUST(finish(fd, &product.input) == 0 && finish(fd, &product.weights) == 0 && finish(fd, &product.stream) == 0);
  return product;
}

static int run(int fd, const struct product *product, int also_read_output) {
  struct drm_rocket_task task = {.regcmd = (uint32_t)product->stream.create.dma_address, .regcmd_count = STREAM_WORDS};
  uint32_t reads[] = {product->stream.create.handle, product->input.create.handle, product->weights.create.handle,
                      product->output.create.handle};
  uint32_t writes[] = {product->output.create.handle};
  struct drm_rocket_job job = {
      .tasks = (uintptr_t)&task,
      .in_bo_handles = (uintptr_t)reads,
      .out_bo_handles = (uintptr_t)writes,
      .task_count = 1,
      .task_struct_size = sizeof task,
      .in_bo_handle_count = also_read_output ? 4 : 3,
      .out_bo_handle_count = 1,
  };
  struct drm_rocket_submit submit = {.jobs = (uintptr_t)&job, .job_count = 1, .job_struct_size = sizeof job};
  return ioctl(fd, DRM_IOCTL_ROCKET_SUBMIT, &submit);
}

static void product(int fd) {
  struct product product = make_product(fd);
  /* The first object of a descriptor lies at address 0. */
  MUST(product.input.create.dma_address == 0 && product.weights.create.dma_address == 4096);
  for (int again = 0; again < 3; again++) {
    memset(product.output.bytes, 0x55, OUTPUT_BYTES);
    MUST(finish(fd, &product.output) == 0 && run(fd, &product, 0) == 0);
    MUST(prepare(fd, &product.output, 60000000000ll) == 0);
    MUST(wrong_results(product.output.bytes) == 0);
  }
  struct drm_gem_close gem = {.handle = product.output.create.handle};
  MUST(ioctl(fd, DRM_IOCTL_GEM_CLOSE, &gem) == 0);
  FAILS(ioctl(fd, DRM_IOCTL_GEM_CLOSE, &gem), EINVAL);
  /* Another descriptor has an address space of its own. */
  int other = open(NODE, O_RDWR);
  MUST(other >= 0 && make(other, 4096).create.dma_address == 0 && close(other) == 0);
}

static void *work(void *unused) {
  for (int again = 0; again < 10; again++) {
    int fd = open(NODE, O_RDWR | O_CLOEXEC);
    MUST(fd >= 0);
    product(fd);
    MUST(close(fd) == 0);
  }
  return unused;
}

/* Threads, each with descriptors of its own, have the scheduler spread their jobs over the cores. */
static void threads(int fd) {
  pthread_t workers[4];
  for (int i = 0; i < 4; i++) MUST(pthread_create(&workers[i], NULL, work, NULL) == 0);
  for (int i = 0; i < 4; i++) MUST(pthread_join(workers[i], NULL) == 0);
  product(fd);
}

static void errors(int fd) {
  struct drm_rocket_create_bo nothing = {0};
  FAILS(ioctl(fd, DRM_IOCTL_ROCKET_CREATE_BO, &nothing), EINVAL);
  FAILS(ioctl(fd, DRM_IOCTL_ROCKET_CREATE_BO, NULL), EFAULT);
  FAILS(ioctl(fd, DRM_IOW(DRM_COMMAND_BASE + 4, struct drm_rocket_fini_bo), &nothing), EINVAL);
  struct drm_rocket_prep_bo prep = {.handle = 4711};
  FAILS(ioctl(fd, DRM_IOCTL_ROCKET_PREP_BO, &prep), ENOENT);
  prep.reserved = 1;
  FAILS(ioctl(fd, DRM_IOCTL_ROCKET_PREP_BO, &prep), EINVAL);
  struct drm_rocket_fini_bo fini = {.handle = 4711};
  FAILS(ioctl(fd, DRM_IOCTL_ROCKET_FINI_BO, &fini), ENOENT);
  fini.reserved = 1;
  FAILS(ioctl(fd, DRM_IOCTL_ROCKET_FINI_BO, &fini), EINVAL);

  struct drm_rocket_submit submit = {0};
  MUST(ioctl(fd, DRM_IOCTL_ROCKET_SUBMIT, &submit) == 0);
  submit = (struct drm_rocket_submit){.job_count = 1, .job_struct_size = 8};
  FAILS(ioctl(fd, DRM_IOCTL_ROCKET_SUBMIT, &submit), EINVAL);
  submit.job_struct_size = sizeof(struct drm_rocket_job);
  FAILS(ioctl(fd, DRM_IOCTL_ROCKET_SUBMIT, &submit), EFAULT);
  submit.reserved = 1;
  FAILS(ioctl(fd, DRM_IOCTL_ROCKET_SUBMIT, &submit), EINVAL);

  /* An object in both lists: nothing runs, and nothing is said. */
  struct product product = make_product(fd);
  memset(product.output.bytes, 0x55, OUTPUT_BYTES);
  MUST(finish(fd, &product.output) == 0 && run(fd, &product, 1) == 0);
  MUST(prepare(fd, &product.output, 60000000000ll) == 0 && wrong_results(product.output.bytes) == ROWS * OUTPUTS);
  /* A stream that names memory of nobody's hangs, and after half a second waiting succeeds as if it had run. */
  ((uint64_t *)product.stream.bytes)[0] = 0;
  pack_stream(product.stream.bytes, 0x70000000, 0x70000000, 0x70000000);
  MUST(finish(fd, &product.stream) == 0 && run(fd, &product, 0) == 0);
  struct timespec before, after;
  clock_gettime(CLOCK_MONOTONIC, &before);
  int waited = prepare(fd, &product.output, 50000000), why = errno;
  clock_gettime(CLOCK_MONOTONIC, &after);
  /* Unless this machine slept for most of the half second. */
  MUST((waited < 0 && why == ETIMEDOUT) || after.tv_sec * 1000 + after.tv_nsec / 1000000 - before.tv_sec * 1000 - before.tv_nsec / 1000000 > 400);
  MUST(prepare(fd, &product.output, 60000000000ll) == 0 && wrong_results(product.output.bytes) == ROWS * OUTPUTS);
}

static void files(int fd) {
  struct stat by_fd;
  MUST(fstat(fd, &by_fd) == 0 && S_ISCHR(by_fd.st_mode) && major(by_fd.st_rdev) == 261);
  char name[16] = {0};
  struct drm_version version = {.name = name, .name_len = sizeof name};
  MUST(ioctl(fd, DRM_IOCTL_VERSION, &version) == 0 && strcmp(name, "rocket") == 0);
  struct object object = make(fd, 4096);
  int copy = dup(fd);
  MUST(copy >= 0 && close(fd) == 0);
  /* The descriptor's memory lives as long as any duplicate. */
  MUST(finish(copy, &object) == 0 && dup2(copy, fd) == fd && close(copy) == 0 && finish(fd, &object) == 0);
}

int main(int count, char **arguments) {
  MUST(count == 2);
  int fd = open(NODE, O_RDWR | O_CLOEXEC);
  MUST(fd >= 0);
  const struct {
    const char *name;
    void (*run)(int);
  } modes[] = {{"product", product}, {"errors", errors}, {"files", files}, {"threads", threads}};
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
    if (strcmp(arguments[1], modes[i].name) == 0) {
      modes[i].run(fd);
      MUST(close(fd) == 0);
      puts("well");
      return 0;
    }
  return 64;
}
