// Something that differs between the instruction sets, and compiles in no time.
namespace csham {
namespace CPU_CAPABILITY {

int width() {
#if defined(__AVX512F__)
  return 16;
#elif defined(__AVX2__)
  return 8;
#else
  return 4;
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace csham
