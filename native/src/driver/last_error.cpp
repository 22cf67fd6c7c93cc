#include "last_error.hpp"

#include <cstdarg>
#include <cstdio>

namespace kvcached {
namespace {

// A fixed buffer: the line is most wanted when memory is short.
struct Line {
  const LastError* owner = nullptr;
  char text[256] = "";
};

thread_local Line line;

}  // namespace

Status LastError::set(Status status, const char* format, ...) const noexcept {
  line.owner = this;
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line.text, sizeof(line.text), format, arguments);
  va_end(arguments);
  return status;
}

std::string LastError::text() const { return line.owner == this ? line.text : ""; }

}  // namespace kvcached
