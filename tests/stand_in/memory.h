// Memory of the stand-in's GPU: pages of the host, of which every address, size, kind and use is known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace stand_in {

enum class Kind { device, pinned };

// A part of a block, and what an operation does to it.
struct Span {
    uint64_t address;
    size_t bytes;
    bool written;
};

// Bytes of device memory that are not taken; what there is in all.
size_t free_device_memory();
size_t device_memory();

// A new block; 0 where device memory is used up. Device memory cannot be touched by the program itself.
uint64_t allocate(Kind kind, size_t bytes);

// Gives a block back; ends the test where it is none, or where work that was not waited for uses it.
void give_back(Kind kind, uint64_t address, const char* call);

// Whether an address is page-locked host memory; anything but a live block of the stand-in is not.
bool is_pinned(uint64_t address);

// Begin and size of the live block of device memory that holds an address; false where there is none.
bool device_range(uint64_t address, uint64_t* begin, size_t* bytes);

// Whether an address lies in a live block, and of which kind.
bool kind_of(uint64_t address, Kind* kind);

// Ends the test unless `bytes` from an address lie in one live block of that kind. `what` names the use.
void check(Kind kind, uint64_t address, size_t bytes, const char* what);

// Work on a stream that uses these spans was ordered, or is done: until then the program must not touch them.
void ordered(const std::vector<Span>& spans);
void done(const std::vector<Span>& spans);

// Lets the caller touch spans of any kind while it lives.
class Opened {
  public:
    explicit Opened(std::vector<Span> spans);
    ~Opened();
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;

  private:
    std::vector<Span> spans;
};

// Opens all memory of a kind: which addresses a kernel or a host function works on, only it knows.
class AllOpened {
  public:
    explicit AllOpened(Kind kind);
    ~AllOpened();

  private:
    Kind kind;
};

// Turns a touch of memory that must not be touched into a sentence.
void watch();

} // namespace stand_in
