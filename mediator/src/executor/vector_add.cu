// The vector add that the cuda executor runs.
//
// Any n goes with any grid: each thread takes every (grid x block)-th element. The three ranges do
// not overlap. vector_add.ptx is made from this file; mediator/tests/vector_add_ptx.rs says how and
// notices when one of the two was changed without the other.
extern "C" __global__ void vector_add(const float *__restrict__ a,
                                      const float *__restrict__ b,
                                      float *__restrict__ c,
                                      unsigned long long n)
{
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i < n; i += step)
        c[i] = a[i] + b[i];
}
