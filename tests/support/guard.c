/* Preloaded, this gives each tensor pages of its own between pages that nobody may touch.
 *
 * torch takes the memory of a tensor on the CPU from posix_memalign and gives it to free. Every second one ends
 * where its pages end, to the byte, and the others begin at an address that torch asked for; what is left of the
 * pages has a pattern, which free looks at. Freed pages are never used again, so that a late access is an error
 * too. Nothing else that allocates memory is changed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define SPAN (1ul << 40)
#define PATTERN 0xA5

extern void __libc_free(void *);
static unsigned char *base;
static size_t *sizes; /* of each allocation, by its first page */
static _Atomic size_t used = PAGE, count;

__attribute__((constructor)) static void reserve(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    sizes = mmap(NULL, SPAN / PAGE * sizeof *sizes, PROT_READ | PROT_WRITE, flags, -1, 0);
    base = mmap(NULL, SPAN, PROT_NONE, flags, -1, 0);
    if (sizes == MAP_FAILED || base == MAP_FAILED) abort();
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    size_t bytes = (size + PAGE - 1) / PAGE * PAGE, at;
    bytes = bytes ? bytes : PAGE;
    at = atomic_fetch_add(&used, bytes + PAGE);
    if (alignment > PAGE || at + bytes > SPAN || mprotect(base + at, bytes, PROT_READ | PROT_WRITE)) return ENOMEM;
    memset(base + at, PATTERN, bytes);
    size_t offset = bytes - size;
    if (atomic_fetch_add(&count, 1) % 2) offset -= offset % alignment;
    sizes[at / PAGE] = size;
    *out = base + at + offset;
    return 0;
}

void free(void *pointer) {
    unsigned char *start = (unsigned char *)((uintptr_t)pointer & ~(PAGE - 1)), *at = pointer;
    if (!base || at < base || at >= base + SPAN) {
        __libc_free(pointer);
        return;
    }
    size_t size = sizes[(start - base) / PAGE], bytes = (size + PAGE - 1) / PAGE * PAGE;
    bytes = bytes ? bytes : PAGE;
    for (unsigned char *p = start; p < start + bytes; p++)
        if ((p < at || p >= at + size) && *p != PATTERN) {
            fprintf(stderr, "guard: byte %td of a tensor of %zu bytes was written\n", p - at, size);
            abort();
        }
    mprotect(start, bytes, PROT_NONE);
    madvise(start, bytes, MADV_DONTNEED);
}
