/*
 * Makes a process's disk fail, and writes down what the disk was told; preloaded into the process (LD_PRELOAD), Linux only.
 * hybrid_memory.testing.disk compiles it, sets its environment and switches it; hybrid_memory.testing.power reads its log.
 *
 *   HYBRID_MEMORY_DISK_ROOT     only what lies below this directory is touched: absolute, without links, no slash at its end
 *   HYBRID_MEMORY_DISK_CONTROL  a file that holds `struct control`, mapped by this process and by the one that tests it
 *   HYBRID_MEMORY_DISK_LOG      where everything that changes the disk is appended, in its order; absent: nothing is
 *   HYBRID_MEMORY_DISK_MARKS    a file descriptor: what is written to it stands in the log too, as a mark
 *
 * Interposed is what SQLite's unix VFS and Python's os module call to change or read files, by both of their names (with
 * and without 64). A SQLite that is linked into an extension module calls them through the same table. Not interposed:
 * locks, stat, mmap, fallocate and vectored writes. SQLite maps only the -shm file, which holds nothing that has to last:
 * it can fail like any other, but is never logged.
 *
 * One lock is held around an operation that changes the disk and its line in the log, so the log's order is the disk's.
 * Reads take no lock. A file descriptor that was closed behind our back (by fclose, say) is recognised by its inode.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST_FILES 4096
#define MOST_PATH 1024
#define BEGINS 0x31304b5349444d48ULL /* "HMDISK01" in memory, little-endian */

/* The numbers of kinds and flags, and the layout of control and lines, are known to the Python side too. */
enum kind { OPEN, READ, WRITE, TRUNCATE, SYNC, UNLINK, RENAME, MKDIR, RMDIR, KINDS, MARK = 15 };
enum { HALF_FIRST = 1, GROWING_ONLY = 2 };
enum { CREATED = 1, DIRECTORY = 2 };

struct control {
    uint64_t begins;
    _Atomic uint64_t armed;
    uint64_t kinds;   /* a bit for each kind that counts */
    uint64_t nth;     /* the first of them to fail, from 1 */
    uint64_t times;   /* how many fail from there on */
    uint64_t error;   /* errno */
    uint64_t flags;
    char suffix[32];  /* how the names of the files end that count; empty: all */
    _Atomic uint64_t matched;
    _Atomic uint64_t struck;
    _Atomic uint64_t handles;
    _Atomic uint64_t unlogged;
    _Atomic uint64_t counts[KINDS];
};

/* A line of the log; `size` bytes follow: data, a path, or two paths with a null between. */
struct line {
    uint32_t kind;
    uint32_t flags;
    uint64_t handle;
    int64_t at;       /* offset of a write, size of a truncation */
    uint32_t error;   /* errno of a sync that failed, else 0: what else fails changes nothing and is not logged */
    uint32_t size;
};

struct file {
    _Atomic uint64_t handle; /* 0: not watched */
    dev_t device;
    ino_t inode;
    char name[64];    /* how its path ends */
    int logged;
    int directory;
};

static struct control unswitched;
static struct control *control = &unswitched;
static struct file files[MOST_FILES];
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static char root[MOST_PATH];
static size_t root_length;
static int log_fd = -1, marks_fd = -1;

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pread)(int, void *, size_t, off64_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off64_t);
static int (*real_unlink)(const char *);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_rename)(const char *, const char *);
static int (*real_mkdir)(const char *, mode_t);
static int (*real_rmdir)(const char *);

static void *next_one(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL) {
        fprintf(stderr, "faultdisk: this C library has no %s\n", name);
        abort();
    }
    return found;
}

static void find_real(void)
{
    if (real_rmdir != NULL)
        return;
    real_open = next_one("open64");
    real_openat = next_one("openat64");
    real_close = next_one("close");
    real_read = next_one("read");
    real_write = next_one("write");
    real_pread = next_one("pread64");
    real_pwrite = next_one("pwrite64");
    real_fsync = next_one("fsync");
    real_fdatasync = next_one("fdatasync");
    real_ftruncate = next_one("ftruncate64");
    real_unlink = next_one("unlink");
    real_unlinkat = next_one("unlinkat");
    real_rename = next_one("rename");
    real_mkdir = next_one("mkdir");
    real_rmdir = next_one("rmdir");
}

__attribute__((constructor)) static void begin(void)
{
    const char *asked_root = getenv("HYBRID_MEMORY_DISK_ROOT");
    const char *asked_control = getenv("HYBRID_MEMORY_DISK_CONTROL");
    const char *asked_log = getenv("HYBRID_MEMORY_DISK_LOG");
    const char *asked_marks = getenv("HYBRID_MEMORY_DISK_MARKS");

    find_real();
    if (asked_root == NULL || asked_control == NULL || strlen(asked_root) >= sizeof root)
        return;
    int fd = real_open(asked_control, O_RDWR | O_CLOEXEC);
    void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED || ((struct control *)mapped)->begins != BEGINS) {
        fprintf(stderr, "faultdisk: the control file cannot be used\n");
        abort();
    }
    real_close(fd);
    control = mapped;
    if (asked_log != NULL && *asked_log != '\0') {
        log_fd = real_open(asked_log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (log_fd < 0)
            abort();
        if (asked_marks != NULL && *asked_marks != '\0')
            marks_fd = atoi(asked_marks);
    }
    strcpy(root, asked_root);
    root_length = strlen(root);
}

/* ---- what is watched ---- */

static int below_root(const char *path)
{
    return root_length > 0 && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

/* The path made absolute; NULL where it cannot be, or does not lie below the root. */
static const char *watched(int directory, const char *path, char *room)
{
    if (root_length == 0 || path == NULL)
        return NULL;
    if (*path != '/') {
        char base[MOST_PATH];
        if (directory == AT_FDCWD) {
            if (getcwd(base, sizeof base) == NULL)
                return NULL;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0)
                return NULL;
            base[length] = 0;
        }
        if (!below_root(base) && strcmp(base, "/") != 0)
            return NULL;
        if (snprintf(room, MOST_PATH, "%s/%s", base, path) >= MOST_PATH)
            return NULL;
        path = room;
    }
    return below_root(path) ? path : NULL;
}

static int ends_with(const char *text, const char *end)
{
    size_t whole = strlen(text), part = strlen(end);
    return part <= whole && strcmp(text + whole - part, end) == 0;
}

static struct file *file_of(int fd)
{
    if (fd < 0 || fd >= MOST_FILES || atomic_load(&files[fd].handle) == 0)
        return NULL;
    struct stat now;
    int kept = errno;
    int gone = fstat(fd, &now) != 0 || now.st_dev != files[fd].device || now.st_ino != files[fd].inode;
    errno = kept;
    if (gone) {
        atomic_store(&files[fd].handle, 0);
        return NULL;
    }
    return &files[fd];
}

/* ---- what is to fail ---- */

enum { GOES_ON = 0, HALF = -1 };

/* Count an operation: GOES_ON, the errno it fails with, or HALF. */
static int strike(enum kind kind, const char *name, int grows)
{
    atomic_fetch_add(&control->counts[kind], 1);
    if (!atomic_load(&control->armed) || !(control->kinds >> kind & 1) || !ends_with(name, control->suffix))
        return GOES_ON;
    if ((control->flags & GROWING_ONLY) && !grows)
        return GOES_ON;
    uint64_t number = atomic_fetch_add(&control->matched, 1) + 1;
    if (number < control->nth || number - control->nth >= control->times)
        return GOES_ON;
    atomic_fetch_add(&control->struck, 1);
    return (control->flags & HALF_FIRST) && number == control->nth && kind == WRITE ? HALF : (int)control->error;
}

static int refused(int error)
{
    errno = error;
    return -1;
}

/* ---- what is written down ---- */

static void put(struct line line, const void *first, size_t first_size, const void *second, size_t second_size)
{
    int kept = errno;
    line.size = (uint32_t)(first_size + second_size);
    struct iovec parts[3] = {
        {&line, sizeof line}, {(void *)first, first_size}, {(void *)second, second_size},
    };
    ssize_t whole = (ssize_t)(sizeof line + first_size + second_size);
    if (writev(log_fd, parts, 3) != whole)
        atomic_fetch_add(&control->unlogged, 1);
    errno = kept;
}

static void put_path(enum kind kind, const char *path)
{
    if (log_fd >= 0)
        put((struct line){.kind = kind}, path, strlen(path), NULL, 0);
}

static int is_logged(const char *path)
{
    return log_fd >= 0 && !ends_with(path, "-shm");
}

/* ---- files ---- */

static int opened(int directory, const char *asked, int flags, mode_t mode)
{
    char room[MOST_PATH];
    find_real();
    const char *path = watched(directory, asked, room);
    if (path == NULL)
        return real_openat(directory, asked, flags, mode);
    pthread_mutex_lock(&order);
    struct stat before;
    int kept = errno;
    int created = (flags & O_CREAT) && lstat(path, &before) != 0;
    errno = kept;
    int error = strike(OPEN, path, created);
    int fd = error > 0 ? refused(error) : real_openat(directory, asked, flags, mode);
    struct stat now;
    if (fd >= 0 && fd < MOST_FILES && fstat(fd, &now) == 0) {
        struct file *file = &files[fd];
        size_t length = strlen(path);
        uint64_t handle = atomic_fetch_add(&control->handles, 1) + 1;
        file->device = now.st_dev;
        file->inode = now.st_ino;
        file->directory = S_ISDIR(now.st_mode);
        file->logged = is_logged(path);
        strcpy(file->name, length < sizeof file->name ? path : path + length - sizeof file->name + 1);
        atomic_store(&file->handle, handle);
        if (file->logged) {
            uint32_t what = (created ? CREATED : 0) | (file->directory ? DIRECTORY : 0);
            put((struct line){.kind = OPEN, .flags = what, .handle = handle}, path, length, NULL, 0);
            if ((flags & O_TRUNC) && !created)
                put((struct line){.kind = TRUNCATE, .handle = handle}, NULL, 0, NULL, 0);
        }
    } else if (fd >= 0) {
        atomic_fetch_add(&control->unlogged, 1);
    }
    pthread_mutex_unlock(&order);
    return fd;
}

#define OPENS(name)                                                     \
    EXPORT int name(const char *path, int flags, ...)                   \
    {                                                                   \
        va_list more;                                                   \
        va_start(more, flags);                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                   \
        return opened(AT_FDCWD, path, flags, mode);                     \
    }
#define OPENS_AT(name)                                                  \
    EXPORT int name(int directory, const char *path, int flags, ...)    \
    {                                                                   \
        va_list more;                                                   \
        va_start(more, flags);                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                   \
        return opened(directory, path, flags, mode);                    \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

EXPORT int close(int fd)
{
    find_real();
    if (fd >= 0 && fd < MOST_FILES && atomic_load(&files[fd].handle) != 0) {
        pthread_mutex_lock(&order);
        atomic_store(&files[fd].handle, 0);
        int done = real_close(fd);
        pthread_mutex_unlock(&order);
        return done;
    }
    return real_close(fd);
}

EXPORT ssize_t read(int fd, void *data, size_t size)
{
    find_real();
    struct file *file = file_of(fd);
    int error = file == NULL ? GOES_ON : strike(READ, file->name, 0);
    return error > 0 ? refused(error) : real_read(fd, data, size);
}

static ssize_t read_at(int fd, void *data, size_t size, off64_t at)
{
    find_real();
    struct file *file = file_of(fd);
    int error = file == NULL ? GOES_ON : strike(READ, file->name, 0);
    return error > 0 ? refused(error) : real_pread(fd, data, size, at);
}

EXPORT ssize_t pread(int fd, void *data, size_t size, off_t at) { return read_at(fd, data, size, at); }
EXPORT ssize_t pread64(int fd, void *data, size_t size, off64_t at) { return read_at(fd, data, size, at); }

/* `at` is below 0 for a write where the file stands. */
static ssize_t written(int fd, const void *data, size_t size, off64_t at)
{
    struct file *file = file_of(fd);
    if (file == NULL)
        return at < 0 ? real_write(fd, data, size) : real_pwrite(fd, data, size, at);
    pthread_mutex_lock(&order);
    struct stat now;
    off64_t end = fstat(fd, &now) == 0 ? now.st_size : 0;
    off64_t where = at;
    if (at < 0)
        where = fcntl(fd, F_GETFL) & O_APPEND ? end : lseek64(fd, 0, SEEK_CUR);
    int error = strike(WRITE, file->name, where + (off64_t)size > end);
    size_t part = error == HALF ? size / 2 : size;
    ssize_t done;
    if (error > 0)
        done = refused(error);
    else
        done = at < 0 ? real_write(fd, data, part) : real_pwrite(fd, data, part, at);
    if (done > 0 && file->logged)
        put((struct line){.kind = WRITE, .handle = file->handle, .at = where}, data, (size_t)done, NULL, 0);
    pthread_mutex_unlock(&order);
    return done;
}

EXPORT ssize_t write(int fd, const void *data, size_t size)
{
    find_real();
    if (fd >= 0 && fd == marks_fd) {
        pthread_mutex_lock(&order);
        ssize_t done = real_write(fd, data, size);
        if (done > 0)
            put((struct line){.kind = MARK}, data, (size_t)done, NULL, 0);
        pthread_mutex_unlock(&order);
        return done;
    }
    return written(fd, data, size, -1);
}

static ssize_t write_at(int fd, const void *data, size_t size, off64_t at)
{
    find_real();
    return at < 0 ? real_pwrite(fd, data, size, at) : written(fd, data, size, at);
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return write_at(fd, data, size, at); }
EXPORT ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return write_at(fd, data, size, at); }

static int synced(int fd, int (*sync)(int))
{
    struct file *file = file_of(fd);
    if (file == NULL)
        return sync(fd);
    pthread_mutex_lock(&order);
    int error = strike(SYNC, file->name, 0);
    int done = error > 0 ? refused(error) : sync(fd);
    if (file->logged) {
        uint32_t what = file->directory ? DIRECTORY : 0;
        put((struct line){.kind = SYNC, .flags = what, .handle = file->handle, .error = done ? errno : 0}, NULL, 0, NULL, 0);
    }
    pthread_mutex_unlock(&order);
    return done;
}

EXPORT int fsync(int fd)
{
    find_real();
    return synced(fd, real_fsync);
}

EXPORT int fdatasync(int fd)
{
    find_real();
    return synced(fd, real_fdatasync);
}

static int truncated(int fd, off64_t size)
{
    find_real();
    struct file *file = file_of(fd);
    if (file == NULL)
        return real_ftruncate(fd, size);
    pthread_mutex_lock(&order);
    int error = strike(TRUNCATE, file->name, 0);
    int done = error > 0 ? refused(error) : real_ftruncate(fd, size);
    if (done == 0 && file->logged)
        put((struct line){.kind = TRUNCATE, .handle = file->handle, .at = size}, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&order);
    return done;
}

EXPORT int ftruncate(int fd, off_t size) { return truncated(fd, size); }
EXPORT int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }

/* ---- names ---- */

static int removed(enum kind kind, int directory, const char *asked, int flags)
{
    char room[MOST_PATH];
    find_real();
    const char *path = watched(directory, asked, room);
    if (path == NULL)
        return real_unlinkat(directory, asked, flags);
    pthread_mutex_lock(&order);
    int error = strike(kind, path, 0);
    int done = error > 0 ? refused(error) : real_unlinkat(directory, asked, flags);
    if (done == 0 && is_logged(path))
        put_path(kind, path);
    pthread_mutex_unlock(&order);
    return done;
}

EXPORT int unlink(const char *path) { return removed(UNLINK, AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return removed(RMDIR, AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int unlinkat(int directory, const char *path, int flags)
{
    return removed(flags & AT_REMOVEDIR ? RMDIR : UNLINK, directory, path, flags);
}

EXPORT int rename(const char *asked_from, const char *asked_to)
{
    char room_from[MOST_PATH], room_to[MOST_PATH];
    find_real();
    const char *from = watched(AT_FDCWD, asked_from, room_from), *to = watched(AT_FDCWD, asked_to, room_to);
    if (from == NULL && to == NULL)
        return real_rename(asked_from, asked_to);
    pthread_mutex_lock(&order);
    int error = strike(RENAME, to != NULL ? to : from, 0);
    int done = error > 0 ? refused(error) : real_rename(asked_from, asked_to);
    if (done == 0 && log_fd >= 0) {
        if (from != NULL && to != NULL)
            put((struct line){.kind = RENAME}, from, strlen(from) + 1, to, strlen(to));
        else if (from != NULL)
            put_path(UNLINK, from);
        else
            atomic_fetch_add(&control->unlogged, 1); /* came from outside: what is in it was never seen */
    }
    pthread_mutex_unlock(&order);
    return done;
}

EXPORT int mkdir(const char *asked, mode_t mode)
{
    char room[MOST_PATH];
    find_real();
    const char *path = watched(AT_FDCWD, asked, room);
    if (path == NULL)
        return real_mkdir(asked, mode);
    pthread_mutex_lock(&order);
    int error = strike(MKDIR, path, 1);
    int done = error > 0 ? refused(error) : real_mkdir(asked, mode);
    if (done == 0)
        put_path(MKDIR, path);
    pthread_mutex_unlock(&order);
    return done;
}
