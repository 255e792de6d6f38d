// calib's own kernels on the host.
#pragma once

#include <functional>
#include <string>

namespace stand_in {

// The work of a launch, with the arguments as they are now; empty for a kernel that is not known.
std::function<void()> prepare_kernel(const std::string& name, unsigned blocks, unsigned threads, void** parameters);

} // namespace stand_in
