/* Knows what of the files under $POWERCUT_ROOT is on the disk, and cuts the power.
 *
 * At every fsync it copies what a power cut would leave from then on into $POWERCUT_DISK: a file's content as <inode>.file, a folder's names as
 * <inode>.folder. Nothing else is promised by POSIX: neither a write nor a rename is on the disk before. At sync number $POWERCUT_AT, counted
 * from 1, the process is killed before anything reaches the disk. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static long syncs;

static int is_ours(int fd)
{
    const char *root = getenv("POWERCUT_ROOT");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = root ? readlink(link, path, sizeof path - 1) : -1;
    if (length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, root, strlen(root)) == 0;
}

static void copy_file(int fd, FILE *to)
{
    char link[64], block[1 << 16];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int from = open(link, O_RDONLY | O_CLOEXEC);
    for (ssize_t n; from >= 0 && (n = read(from, block, sizeof block)) > 0;)
        fwrite(block, 1, n, to);
    close(from);
}

static void copy_names(int fd, FILE *to)
{
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fdopendir(again);
    for (struct dirent *entry; (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) {
            openat(fd, entry->d_name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
            fprintf(to, "%lu %s\n", (unsigned long)entry->d_ino, entry->d_name);
        }
    closedir(folder);
}

static void remember(int fd)
{
    struct stat facts;
    if (!is_ours(fd) || fstat(fd, &facts))
        return;
    const char *at = getenv("POWERCUT_AT");
    if (++syncs == (at ? atol(at) : 0))
        kill(getpid(), SIGKILL);
    char path[4096], unfinished[4200];
    int is_folder = S_ISDIR(facts.st_mode);
    snprintf(path, sizeof path, "%s/%lu.%s", getenv("POWERCUT_DISK"), (unsigned long)facts.st_ino, is_folder ? "folder" : "file");
    snprintf(unfinished, sizeof unfinished, "%s.unfinished", path);
    /* As long as somebody has it open, its inode is not given to another file; nor are those of the names above. */
    if (access(path, F_OK))
        fcntl(fd, F_DUPFD_CLOEXEC, 200);
    FILE *to = fopen(unfinished, "we");
    (is_folder ? copy_names : copy_file)(fd, to);
    fclose(to);
    rename(unfinished, path);
}

int fsync(int fd)
{
    remember(fd);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd)
{
    remember(fd);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
