#include "memory.h"

#include <csignal>
#include <map>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

#include "stand_in.h"

namespace stand_in {
namespace {

struct Block {
    uint64_t begin;
    size_t bytes, mapped;
    Kind kind;
    bool freed = false;
    // Work that was ordered and has not run: how often it reads and writes this block.
    int reads = 0, writes = 0;
    int opened = 0;
};

// Blocks that were freed stay, so that a later use of their address is told from an address that never was.
std::map<uint64_t, Block>& blocks() {
    static auto* all = new std::map<uint64_t, Block>;
    return *all;
}

size_t used = 0;

Block* holding(uint64_t address) {
    auto above = blocks().upper_bound(address);
    if (above == blocks().begin()) return nullptr;
    Block& block = std::prev(above)->second;
    return address < block.begin + block.mapped ? &block : nullptr;
}

void protect(Block& block) {
    int rights = PROT_READ | PROT_WRITE;
    if (block.opened == 0) {
        if (block.freed || block.kind == Kind::device || block.writes > 0) rights = PROT_NONE;
        else if (block.reads > 0) rights = PROT_READ;
    }
    if (mprotect(reinterpret_cast<void*>(block.begin), block.mapped, rights) != 0) refuse("mprotect failed");
}

const char* name(Kind kind) { return kind == Kind::device ? "device memory" : "page-locked host memory"; }

struct sigaction before;

void touched(int signal, siginfo_t* info, void* context) {
    auto address = reinterpret_cast<uint64_t>(info->si_addr);
    if (Block* block = holding(address)) {
        std::string where = hex(address);
        if (block->freed) refuse("the program touched memory at " + where + " that was freed");
        if (block->kind == Kind::device) refuse("the program itself touched device memory at " + where);
        refuse("the program touched page-locked memory at " + where +
               " before it had waited for the stream that works on it");
    }
    if (before.sa_flags & SA_SIGINFO && before.sa_sigaction) return before.sa_sigaction(signal, info, context);
    std::signal(SIGSEGV, SIG_DFL);
}

} // namespace

size_t device_memory() { return static_cast<size_t>(number_of("memory", 1ll << 33)); }

size_t free_device_memory() { return device_memory() - used; }

uint64_t allocate(Kind kind, size_t bytes) {
    if (kind == Kind::device && bytes > free_device_memory()) return 0;
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    // A page more, which is never opened, so that blocks do not touch.
    size_t mapped = (bytes + page - 1) / page * page;
    void* begin = mmap(nullptr, mapped + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (begin == MAP_FAILED) return 0;
    auto address = reinterpret_cast<uint64_t>(begin);
    Block block{address, bytes, mapped, kind};
    blocks()[address] = block;
    // What is not written must not look like a result: neither zeros nor plausible numbers.
    blocks()[address].opened = 1;
    protect(blocks()[address]);
    std::memset(begin, 0xcd, bytes);
    blocks()[address].opened = 0;
    protect(blocks()[address]);
    if (kind == Kind::device) used += bytes;
    return address;
}

void give_back(Kind kind, uint64_t address, const char* call) {
    Block* block = holding(address);
    if (!block || block->begin != address) refuse(std::string(call) + " of " + hex(address) + ", which was never allocated");
    if (block->freed) refuse(std::string(call) + " of " + hex(address) + ", which was freed before");
    if (block->kind != kind) refuse(std::string(call) + " of " + hex(address) + ", which is " + name(block->kind));
    if (block->reads + block->writes > 0)
        refuse(std::string(call) + " of " + hex(address) + " while a stream that was not waited for works on it");
    block->freed = true;
    if (kind == Kind::device) used -= block->bytes;
    madvise(reinterpret_cast<void*>(block->begin), block->mapped, MADV_DONTNEED);
    protect(*block);
}

bool is_pinned(uint64_t address) {
    Block* block = holding(address);
    return block && !block->freed && block->kind == Kind::pinned;
}

bool device_range(uint64_t address, uint64_t* begin, size_t* bytes) {
    Block* block = holding(address);
    if (!block || block->freed || block->kind != Kind::device) return false;
    *begin = block->begin;
    *bytes = block->bytes;
    return true;
}

bool kind_of(uint64_t address, Kind* kind) {
    Block* block = holding(address);
    if (!block || block->freed) return false;
    *kind = block->kind;
    return true;
}

void check(Kind kind, uint64_t address, size_t bytes, const char* what) {
    Block* block = holding(address);
    std::string where = std::string(what) + " at " + hex(address);
    if (!block) refuse(where + ": nothing was ever allocated there");
    if (block->freed) refuse(where + ": that memory was freed");
    if (block->kind != kind) refuse(where + ": that is " + name(block->kind) + " where " + name(kind) + " is needed");
    if (address + bytes > block->begin + block->bytes)
        refuse(where + ": " + text(bytes) + " bytes do not fit, since the memory ends after " +
               text(block->begin + block->bytes - address));
}

void ordered(const std::vector<Span>& spans) {
    for (const Span& span : spans)
        if (Block* block = holding(span.address)) {
            if (block->freed) refuse("work was ordered on memory at " + hex(span.address) + " that was freed");
            ++(span.written ? block->writes : block->reads);
            protect(*block);
        }
}

void done(const std::vector<Span>& spans) {
    for (const Span& span : spans)
        if (Block* block = holding(span.address)) {
            --(span.written ? block->writes : block->reads);
            protect(*block);
        }
}

Opened::Opened(std::vector<Span> spans) : spans(std::move(spans)) {
    for (const Span& span : this->spans)
        if (Block* block = holding(span.address)) {
            ++block->opened;
            protect(*block);
        }
}

Opened::~Opened() {
    for (const Span& span : spans)
        if (Block* block = holding(span.address)) {
            --block->opened;
            protect(*block);
        }
}

AllOpened::AllOpened(Kind kind) : kind(kind) {
    for (auto& [begin, block] : blocks())
        if (block.kind == kind && !block.freed) {
            ++block.opened;
            protect(block);
        }
}

AllOpened::~AllOpened() {
    for (auto& [begin, block] : blocks())
        if (block.kind == kind && !block.freed) {
            --block.opened;
            protect(block);
        }
}

void watch() {
    static bool watching = false;
    if (std::exchange(watching, true)) return;
    struct sigaction action {};
    action.sa_sigaction = touched;
    action.sa_flags = SA_SIGINFO; // on the thread's own stack: the other one has no room for a sentence
    sigaction(SIGSEGV, &action, &before);
}

} // namespace stand_in
