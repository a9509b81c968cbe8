/* A CUDA driver without a card: memory is the host's, copies are real, launches do nothing. With it, on any machine, a
 * program that computes on CUDA through cudarc makes and compiles every kernel that it would make on a card; what it
 * computes is nonsense. tests/tools/cuda_kernels.sh builds and uses it.
 *
 * It is also an NVRTC that hands everything on to the real one, and keeps what it has seen: cubecl's autotune passes over a
 * kernel that can't be compiled, so that nobody else would say so.
 *
 * In: PRETEND_SM, the compute capability (75, 80, 89, 90); PRETEND_PTX_DIR, an existing folder. Out, in that folder, named by
 * the digest of the source: x.cu, what NVRTC was given; x.log, what it said where it refused that; x.ptx, a module that was
 * loaded; and "refused", a line for each call that a card would have refused.
 *
 * Only what cubecl-cuda 0.11 calls is here: cudarc looks a function up when it is first called, and then names the missing one.
 * The file names must be libcuda.so and libnvrtc.so, the first that cudarc tries. libcuda.so.1 would be wrong: the real NVRTC
 * opens that one itself, and expects more of it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    NOT_FOUND = 500,
    NOT_SUPPORTED = 801,
} Result;

/* A device pointer is 64 bits wide, whatever the host's are. */
typedef uint64_t DevicePtr;

/* That of the toolkit: an older driver would refuse what its NVRTC writes. */
#define DRIVER_VERSION 12080
#define MEMORY_BYTES (16ULL << 30)
#define THREADS_MAX 1024
#define GRID_X_MAX 2147483647
#define GRID_YZ_MAX 65535
/* What cubecl takes for the best alignment of a row, and the driver keeps. */
#define ALIGNMENT 512

/* One card of each architecture, as clouds rent them out. Shared memory is per block, opted into; by the name cubecl tells
 * Turing cards with tensor cores from those without. */
typedef struct {
    int sm;
    const char *name;
    int multiprocessors;
    int shared_bytes;
} Card;

static const Card CARDS[] = {
    {75, "Tesla T4", 40, 64 << 10},
    {80, "NVIDIA A100-SXM4-40GB", 108, 163 << 10},
    {89, "NVIDIA L4", 58, 99 << 10},
    {90, "NVIDIA H100 80GB HBM3", 132, 227 << 10},
};

static const Card *card(void) {
    const char *sm = getenv("PRETEND_SM");
    for (size_t i = 0; sm != NULL && i < sizeof CARDS / sizeof *CARDS; i++)
        if (CARDS[i].sm == atoi(sm))
            return &CARDS[i];
    fprintf(stderr, "pretend driver: PRETEND_SM must be 75, 80, 89 or 90\n");
    exit(64);
}

/* ---- What it writes ---- */

static FILE *open_out(const char *name, const char *mode) {
    const char *folder = getenv("PRETEND_PTX_DIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder != NULL ? folder : "PRETEND_PTX_DIR is not set", name);
    FILE *file = fopen(path, mode);
    if (file == NULL) {
        perror(path);
        exit(66);
    }
    return file;
}

static void keep(uint64_t digest, const char *kind, const char *text) {
    char name[64];
    snprintf(name, sizeof name, "%016llx.%s", (unsigned long long)digest, kind);
    FILE *file = open_out(name, "w");
    fputs(text, file);
    fclose(file);
}

static Result refuse(Result why, const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    FILE *file = open_out("refused", "a");
    fprintf(file, "%s\n", line);
    fclose(file);
    return why;
}

/* FNV-1a, which is enough for some hundred names. */
static uint64_t digest_of(const char *text) {
    uint64_t digest = 0xcbf29ce484222325;
    for (; *text != '\0'; text++)
        digest = (digest ^ (unsigned char)*text) * 0x100000001b3;
    return digest;
}

/* ---- Device ---- */

/* For streams, events, contexts and graphs: nobody looks behind a handle, but it must not be null. */
static char handle;

Result cuInit(unsigned flags) { return flags == 0 ? SUCCESS : INVALID_VALUE; }

Result cuDriverGetVersion(int *version) {
    *version = DRIVER_VERSION;
    return SUCCESS;
}

Result cuGetErrorName(Result error, const char **name) {
    (void)error;
    *name = "PRETEND_ERROR";
    return SUCCESS;
}

Result cuGetErrorString(Result error, const char **text) {
    (void)error;
    *text = "the pretend driver refused, as a card would";
    return SUCCESS;
}

Result cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}

Result cuDeviceGet(int *device, int ordinal) {
    *device = 0;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

Result cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    snprintf(name, size, "%s", card()->name);
    return SUCCESS;
}

Result cuDeviceGetPCIBusId(char *id, int size, int device) {
    (void)device;
    snprintf(id, size, "0000:01:00.0");
    return SUCCESS;
}

Result cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = MEMORY_BYTES;
    return SUCCESS;
}

Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 1: /* MAX_THREADS_PER_BLOCK */
    case 2: /* MAX_BLOCK_DIM_X */
    case 3: /* MAX_BLOCK_DIM_Y */
        *value = THREADS_MAX;
        return SUCCESS;
    case 4: /* MAX_BLOCK_DIM_Z */
        *value = 64;
        return SUCCESS;
    case 5: /* MAX_GRID_DIM_X */
        *value = GRID_X_MAX;
        return SUCCESS;
    case 6: /* MAX_GRID_DIM_Y */
    case 7: /* MAX_GRID_DIM_Z */
        *value = GRID_YZ_MAX;
        return SUCCESS;
    case 10: /* WARP_SIZE */
        *value = 32;
        return SUCCESS;
    case 16: /* MULTIPROCESSOR_COUNT */
        *value = card()->multiprocessors;
        return SUCCESS;
    case 75: /* COMPUTE_CAPABILITY_MAJOR */
        *value = card()->sm / 10;
        return SUCCESS;
    case 76: /* COMPUTE_CAPABILITY_MINOR */
        *value = card()->sm % 10;
        return SUCCESS;
    case 97: /* MAX_SHARED_MEMORY_PER_BLOCK_OPTIN */
        *value = card()->shared_bytes;
        return SUCCESS;
    case 115: /* MEMORY_POOLS_SUPPORTED */
        *value = 1;
        return SUCCESS;
    default: /* Rather than a wrong answer; whoever adds one looks up what the card says. */
        return refuse(INVALID_VALUE, "device attribute %d is not known here", attribute);
    }
}

Result cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    *context = &handle;
    return SUCCESS;
}

Result cuDevicePrimaryCtxRelease_v2(int device) { return device == 0 ? SUCCESS : INVALID_DEVICE; }
Result cuCtxSetCurrent(void *context) { return context != NULL ? SUCCESS : INVALID_VALUE; }
Result cuCtxSynchronize(void) { return SUCCESS; }

Result cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

/* ---- Streams and events: everything is done when its call returns, so that nothing is ever waited for ---- */

Result cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    *stream = &handle;
    return SUCCESS;
}

Result cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    (void)priority;
    return cuStreamCreate(stream, flags);
}

Result cuStreamDestroy_v2(void *stream) { return stream != NULL ? SUCCESS : INVALID_VALUE; }
Result cuStreamSynchronize(void *stream) { return stream != NULL ? SUCCESS : INVALID_VALUE; }

Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)flags;
    return stream != NULL && event != NULL ? SUCCESS : INVALID_VALUE;
}

Result cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof(struct timespec));
    return *event != NULL ? SUCCESS : OUT_OF_MEMORY;
}

Result cuEventDestroy_v2(void *event) {
    free(event);
    return event != NULL ? SUCCESS : INVALID_VALUE;
}

Result cuEventSynchronize(void *event) { return event != NULL ? SUCCESS : INVALID_VALUE; }

/* The host's clock: cubecl's probes launch more and more until their launches take 20 ms, so time must go on with them. */
Result cuEventRecord(void *event, void *stream) {
    if (event == NULL || stream == NULL)
        return INVALID_VALUE;
    return clock_gettime(CLOCK_MONOTONIC, event) == 0 ? SUCCESS : INVALID_VALUE;
}

Result cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    if (start == NULL || end == NULL)
        return INVALID_VALUE;
    const struct timespec *from = start, *to = end;
    *milliseconds = (float)((to->tv_sec - from->tv_sec) * 1e3 + (to->tv_nsec - from->tv_nsec) / 1e6);
    return SUCCESS;
}

/* cudarc calls this one when it is built for CUDA 12, that one for 13. */
Result cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

/* ---- Memory: zeros, taken from the host when they are first written ---- */

Result cuMemAlloc_v2(DevicePtr *pointer, size_t bytes) {
    if (bytes == 0 || bytes > MEMORY_BYTES)
        return refuse(bytes == 0 ? INVALID_VALUE : OUT_OF_MEMORY, "an allocation of %zu bytes", bytes);
    char *block = calloc(1, bytes + ALIGNMENT + sizeof block);
    if (block == NULL)
        return OUT_OF_MEMORY;
    uintptr_t aligned = ((uintptr_t)block + sizeof block + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    ((char **)aligned)[-1] = block;
    *pointer = aligned;
    return SUCCESS;
}

Result cuMemFree_v2(DevicePtr pointer) {
    if (pointer != 0)
        free(((char **)(uintptr_t)pointer)[-1]);
    return SUCCESS;
}

Result cuMemAllocAsync(DevicePtr *pointer, size_t bytes, void *stream) {
    (void)stream;
    return cuMemAlloc_v2(pointer, bytes);
}

Result cuMemFreeAsync(DevicePtr pointer, void *stream) {
    (void)stream;
    return cuMemFree_v2(pointer);
}

Result cuMemAllocHost_v2(void **pointer, size_t bytes) {
    DevicePtr block;
    Result result = cuMemAlloc_v2(&block, bytes);
    if (result == SUCCESS)
        *pointer = (void *)(uintptr_t)block;
    return result;
}

Result cuMemFreeHost(void *pointer) { return cuMemFree_v2((uintptr_t)pointer); }

Result cuMemcpyHtoDAsync_v2(DevicePtr to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    memcpy((void *)(uintptr_t)to, from, bytes);
    return SUCCESS;
}

Result cuMemcpyDtoHAsync_v2(void *to, DevicePtr from, size_t bytes, void *stream) {
    (void)stream;
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return SUCCESS;
}

Result cuMemcpyDtoDAsync_v2(DevicePtr to, DevicePtr from, size_t bytes, void *stream) {
    (void)stream;
    memcpy((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes);
    return SUCCESS;
}

enum { MEMORY_HOST = 1, MEMORY_DEVICE = 2 };

/* One side of CUDA_MEMCPY2D. */
typedef struct {
    size_t x_bytes, y;
    int kind;
    void *host;
    DevicePtr device;
    void *array;
    size_t pitch;
} Plane;

typedef struct {
    Plane from, to;
    size_t width_bytes, height;
} Copy2D;

static char *row(const Plane *plane, size_t y) {
    char *start = plane->kind == MEMORY_DEVICE ? (char *)(uintptr_t)plane->device : plane->host;
    return start + (plane->y + y) * plane->pitch + plane->x_bytes;
}

Result cuMemcpy2DAsync_v2(const Copy2D *copy, void *stream) {
    (void)stream;
    if (copy->from.pitch < copy->width_bytes || copy->to.pitch < copy->width_bytes)
        return refuse(INVALID_VALUE, "a copy of rows longer than their pitch");
    for (size_t y = 0; y < copy->height; y++)
        memcpy(row(&copy->to, y), row(&copy->from, y), copy->width_bytes);
    return SUCCESS;
}

/* ---- NVRTC: the real one, and what went through it ---- */

static void *real(const char *function) {
    static void *library;
    if (library == NULL)
        library = dlopen("libnvrtc.so.12", RTLD_NOW | RTLD_LOCAL);
    void *found = library != NULL ? dlsym(library, function) : NULL;
    if (found == NULL) {
        fprintf(stderr, "pretend driver: %s\n", dlerror());
        exit(69);
    }
    return found;
}

/* cubecl compiles a kernel and loads it on one thread, one kernel after the other: so the last source is that of the next
 * module. */
static _Thread_local uint64_t source_digest;

int nvrtcCreateProgram(void **program, const char *source, const char *name, int headers, const char *const *texts,
                       const char *const *names) {
    int (*create)(void **, const char *, const char *, int, const char *const *, const char *const *) =
        real("nvrtcCreateProgram");
    source_digest = digest_of(source);
    keep(source_digest, "cu", source);
    return create(program, source, name, headers, texts, names);
}

int nvrtcGetProgramLogSize(void *program, size_t *bytes) {
    int (*size)(void *, size_t *) = real("nvrtcGetProgramLogSize");
    return size(program, bytes);
}

int nvrtcGetProgramLog(void *program, char *log) {
    int (*get)(void *, char *) = real("nvrtcGetProgramLog");
    return get(program, log);
}

int nvrtcCompileProgram(void *program, int count, const char *const *options) {
    int (*compile)(void *, int, const char *const *) = real("nvrtcCompileProgram");
    int result = compile(program, count, options);
    size_t bytes;
    if (result != 0 && nvrtcGetProgramLogSize(program, &bytes) == 0) {
        char *log = calloc(1, bytes + 1);
        nvrtcGetProgramLog(program, log);
        keep(source_digest, "log", log);
        free(log);
    }
    return result;
}

int nvrtcGetPTXSize(void *program, size_t *bytes) {
    int (*size)(void *, size_t *) = real("nvrtcGetPTXSize");
    return size(program, bytes);
}

int nvrtcGetPTX(void *program, char *ptx) {
    int (*get)(void *, char *) = real("nvrtcGetPTX");
    return get(program, ptx);
}

int nvrtcDestroyProgram(void **program) {
    int (*destroy)(void **) = real("nvrtcDestroyProgram");
    return destroy(program);
}

const char *nvrtcGetErrorString(int result) {
    const char *(*get)(int) = real("nvrtcGetErrorString");
    return get(result);
}

/* ---- Modules and launches ---- */

/* A module and each of its functions are its PTX, which is kept until the end: cubecl unloads none. */
Result cuModuleLoadData(void **module, const void *image) {
    const char *ptx = image;
    if (strstr(ptx, ".version") == NULL)
        return refuse(INVALID_IMAGE, "a module that is no PTX");
    keep(source_digest != 0 ? source_digest : digest_of(ptx), "ptx", ptx);
    *module = strdup(ptx);
    return *module != NULL ? SUCCESS : OUT_OF_MEMORY;
}

Result cuModuleUnload(void *module) {
    free(module);
    return SUCCESS;
}

Result cuModuleGetFunction(void **function, void *module, const char *name) {
    char entry[1024];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    if (strstr(module, entry) == NULL)
        return refuse(NOT_FOUND, "no function %s in its module", name);
    *function = module;
    return SUCCESS;
}

Result cuFuncSetAttribute(void *function, int attribute, int value) {
    if (function == NULL || attribute != 8 /* MAX_DYNAMIC_SHARED_SIZE_BYTES */)
        return refuse(INVALID_VALUE, "function attribute %d is not known here", attribute);
    if (value < 0 || value > card()->shared_bytes)
        return refuse(INVALID_VALUE, "a function with %d bytes of shared memory", value);
    return SUCCESS;
}

/* A card's limits on a launch hold here too. Not that on registers: kernels name their largest block, and ptxas keeps to it. */
Result cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared_bytes, void *stream, void **arguments, void **extra) {
    (void)arguments, (void)extra;
    /* cubecl's probes of a card's rates let a kernel loop until it takes 20 ms. One that takes no time would be asked to loop
     * for ever, so these take that long. */
    if (function != NULL && strstr(function, "_throughput") != NULL)
        usleep(20000);
    int fits = grid_x > 0 && grid_y > 0 && grid_z > 0 && grid_x <= GRID_X_MAX && grid_y <= GRID_YZ_MAX &&
               grid_z <= GRID_YZ_MAX && block_x > 0 && block_y > 0 && block_z > 0 && block_z <= 64 &&
               (uint64_t)block_x * block_y * block_z <= THREADS_MAX && shared_bytes <= (unsigned)card()->shared_bytes;
    if (function == NULL || stream == NULL || !fits)
        return refuse(INVALID_VALUE, "a launch of (%u, %u, %u) blocks of (%u, %u, %u) threads with %u bytes of shared memory",
                      grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes);
    return SUCCESS;
}

/* Descriptors of tensors for Hopper's copies. cubecl checks their limits only when these refuse, so these do not. */
Result cuTensorMapEncodeTiled(void *map, ...) {
    memset(map, 0, 128);
    return SUCCESS;
}

Result cuTensorMapEncodeIm2col(void *map, ...) {
    memset(map, 0, 128);
    return SUCCESS;
}

Result cuTensorMapEncodeIm2colWide(void *map, ...) {
    memset(map, 0, 128);
    return SUCCESS;
}

/* ---- Graphs: recorded launches have been done, that is nothing ---- */

Result cuStreamBeginCapture_v2(void *stream, int mode) {
    (void)mode;
    return stream != NULL ? SUCCESS : INVALID_VALUE;
}

Result cuStreamEndCapture(void *stream, void **graph) {
    (void)stream;
    *graph = &handle;
    return SUCCESS;
}

Result cuGraphGetNodes(void *graph, void **nodes, size_t *count) {
    (void)graph, (void)nodes;
    *count = 0;
    return SUCCESS;
}

Result cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    (void)graph, (void)flags;
    *executable = &handle;
    return SUCCESS;
}

Result cuGraphNodeGetType(void *node, int *kind) {
    (void)node, (void)kind;
    return NOT_SUPPORTED;
}

Result cuGraphUpload(void *executable, void *stream) { return executable != NULL && stream != NULL ? SUCCESS : INVALID_VALUE; }
Result cuGraphLaunch(void *executable, void *stream) { return executable != NULL && stream != NULL ? SUCCESS : INVALID_VALUE; }
Result cuGraphDestroy(void *graph) { return graph != NULL ? SUCCESS : INVALID_VALUE; }
Result cuGraphExecDestroy(void *executable) { return executable != NULL ? SUCCESS : INVALID_VALUE; }
