// A made-up device, for torch's place of such: its memory is the machine's, its operations are the CPU's, and as a GPU's
// they refuse tensors that lie anywhere else. Numbers without a dimension and indices may be the CPU's.

#include <cstring>

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

namespace {

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);
const c10::Stream STREAM(c10::Stream::DEFAULT, DEVICE);

void give_back(void* place) { c10::free_cpu(place); }

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {place, place, &give_back, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Memory memory;
REGISTER_ALLOCATOR(KIND, &memory)

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return STREAM; }
  c10::Stream getDefaultStream(c10::Device) const override { return STREAM; }
  c10::Stream getNewStream(c10::Device, int) const override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const override { return STREAM; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return true; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* held = storage.unsafeGetStorageImpl();
    auto place = memory.allocate(bytes);
    if (bytes && held->nbytes()) std::memcpy(place.get(), held->data(), std::min(bytes, held->nbytes()));
    held->set_data_ptr_noswap(std::move(place));
    held->set_nbytes(bytes);
  }
};
const bool known = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

// -- what makes, copies and views tensors ---------------------------------------------------------------------

using Sizes = c10::SymIntArrayRef;
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

at::Tensor made(c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
                std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(type), format);
}

at::Tensor made_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type,
                        std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, c10::dtype_or_default(type));
}

// The same memory as the CPU's own.
at::Tensor seen(const at::Tensor& x) {
  if (x.device().is_cpu()) return x;
  auto options = at::TensorOptions().dtype(x.scalar_type()).device(at::kCPU);
  return at::from_blob(x.numel() ? x.mutable_data_ptr() : nullptr, x.sizes(), x.strides(), options);
}

at::Tensor copied(const at::Tensor& from, const at::Tensor& to, bool) {
  at::NoGradGuard guard;
  seen(to).copy_(seen(from));
  return to;
}

const at::Tensor& resized(const at::Tensor& x, c10::IntArrayRef size, std::optional<c10::MemoryFormat>) {
  if (x.sizes() == size) return x;
  auto* held = x.unsafeGetTensorImpl();
  held->set_sizes_contiguous(size);
  const size_t bytes = (held->storage_offset() + held->numel()) * x.itemsize();
  if (held->storage().nbytes() < bytes) Hooks().resizePrivateUse1Bytes(held->storage(), bytes);
  return x;
}

at::Tensor copied_and_resized(const at::Tensor& from, const at::Tensor& to) {
  resized(to, from.sizes(), std::nullopt);
  return copied(from, to, false);
}

at::Tensor& set(at::Tensor& x, c10::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* held = x.unsafeGetTensorImpl();
  held->set_storage_keep_dtype(storage);
  held->set_storage_offset(offset);
  held->set_sizes_and_strides(size, stride);
  return x;
}

at::Tensor viewed(const at::Tensor& x, Sizes size) {
  return at::native::view(x, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor strided(const at::Tensor& x, Sizes size, Sizes stride, std::optional<c10::SymInt> offset) {
  auto at = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(x, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), at);
}

at::Tensor aliased(const at::Tensor& x, Sizes size, Sizes stride) {
  return at::native::_reshape_alias(x, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

at::Scalar number(const at::Tensor& x) { return seen(x).item(); }

int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                        double, bool, std::optional<double>, bool) {
  return 0;
}

// -- anything else --------------------------------------------------------------------------------------------

void refuse_others(const at::Tensor& x, const std::string& name) {
  const bool fits = !x.defined() || x.device() == DEVICE || x.dim() == 0;
  TORCH_CHECK(fits, "elsewhere: ", name, " was given a tensor of ", x.device(), " and of size ", x.sizes());
}

void as_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().operator_name().name;
  const bool indexes = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index", 0) == 0;
  for (const auto& given : torch::jit::last(stack, indexes ? 0 : op.schema().arguments().size())) {
    if (given.isTensor()) refuse_others(given.toTensor(), name);
    if (!given.isTensorList()) continue;
    for (const at::Tensor& x : given.toTensorVector()) refuse_others(x, name);
  }
  at::native::cpu_fallback(op, stack);
}

}  // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &plain_attention)
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", made);
  m.impl("empty_strided", made_strided);
  m.impl("_copy_from", copied);
  m.impl("_copy_from_and_resize", copied_and_resized);
  m.impl("resize_", resized);
  m.impl("set_.source_Storage_storage_offset", set);
  m.impl("view", viewed);
  m.impl("as_strided", strided);
  m.impl("_reshape_alias", aliased);
  m.impl("_local_scalar_dense", number);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&as_the_cpu>()); }
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {}
