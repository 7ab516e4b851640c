// A library of this cannot be loaded: it calls what is nowhere.
#if !defined(CPU_CAPABILITY)
void nowhere();
extern "C" void call() { nowhere(); }
int x = (call(), 1);
#endif
