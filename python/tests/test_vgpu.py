"""Against the mediator in VGPU_ENDPOINT: `cargo xtask python` starts one."""

import builtins
import ctypes
import gc
import re
import threading
import unittest
from pathlib import Path

import numpy as np

import vgpu

SET = """
.version 6.0
.target sm_50
.address_size 64
.visible .entry set(.param .u64 to, .param .u32 value)
{
    .reg .b32 %v;
    .reg .b64 %to;
    ld.param.u64 %to, [to];
    ld.param.u32 %v, [value];
    st.global.u32 [%to], %v;
    ret;
}
.visible .entry half(.param .u64 to, .param .f64 value, .param .u8 none)
{
    .reg .f64 %v;
    .reg .b64 %to;
    ld.param.u64 %to, [to];
    ld.param.f64 %v, [value];
    mul.f64 %v, %v, 0d3FE0000000000000;
    st.global.f64 [%to], %v;
    ret;
}
"""


class WithDevice(unittest.TestCase):
    def setUp(self):
        self.dev = vgpu.Device()
        self.addCleanup(self.dev.close)


class Sessions(unittest.TestCase):
    def test_a_session_ends_with_its_block_and_is_of_no_use_then(self):
        with vgpu.Device(timeout=60, client_name="a test") as dev:
            buffer = dev.zeros(3)
            self.assertEqual(dev.info.executor, "cpu")
            self.assertEqual(dev.info.name, dev.name)
            self.assertGreater(dev.info.total_memory, 0)
            self.assertEqual(dev.attribute(75), dev.info.compute_capability[0])
            self.assertEqual(dev.attribute("WARP_SIZE"), 32)
            self.assertEqual(dev.attribute("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR"), dev.attribute(75))
            self.assertIsNone(dev.attribute(0))
            with self.assertRaisesRegex(vgpu.ArgumentError, "no attribute 'WARPS'"):
                dev.attribute("WARPS")
        with self.assertRaisesRegex(vgpu.ArgumentError, "the device was closed"):
            dev.synchronize()
        with self.assertRaisesRegex(vgpu.ArgumentError, "the device was closed"):
            buffer.to_host()
        buffer.close()
        dev.close()

    def test_the_devices_are_listed_before_one_is_chosen(self):
        devices = vgpu.devices(client_name="a list")
        self.assertEqual([device.ordinal for device in devices], [0])
        largest = max(devices, key=lambda device: device.total_memory)
        with vgpu.Device(ordinal=largest.ordinal) as dev:
            self.assertEqual(largest.name, dev.name)
            self.assertEqual(largest.total_memory, dev.info.total_memory)
            self.assertEqual(largest.compute_capability, dev.info.compute_capability)
            for name, number in vgpu.DEVICE_ATTRIBUTES.items():
                self.assertEqual(largest.attribute(name), dev.attribute(number), name)
        self.assertIsNone(largest.attribute(10**6))
        self.assertGreater(largest.driver_version, 0)
        with self.assertRaises(vgpu.UnreachableError):
            vgpu.devices("local:/nowhere/vgpu.sock", timeout=0.1)

    def test_a_session_ends_when_its_block_fails(self):
        with self.assertRaises(KeyError):
            with vgpu.Device() as dev:
                raise KeyError("mine")
        with self.assertRaises(vgpu.ArgumentError):
            dev.synchronize()

    def test_nobody_there_is_an_unreachable_error_with_advice(self):
        with self.assertRaises(vgpu.UnreachableError) as raised:
            vgpu.Device("local:/nowhere/vgpu.sock", timeout=0.1)
        self.assertIsInstance(raised.exception, vgpu.Error)
        self.assertIsInstance(raised.exception, builtins.ConnectionError)
        self.assertIn("/nowhere", str(raised.exception))
        self.assertTrue(raised.exception.advice)
        self.assertIsNone(raised.exception.cuda_result)
        self.assertEqual(raised.exception.retry, "new session")

    def test_wrong_settings_are_argument_errors(self):
        for wrong in [("nonsense",), ("local:",), (None, -1.0), (None, float("nan")), (None, 0)]:
            with self.subTest(wrong), self.assertRaises(ValueError):
                vgpu.Device(*wrong)
        with self.assertRaises(TypeError):
            vgpu.Device(7)

    def test_vectors_are_added_without_a_device(self):
        np.testing.assert_array_equal(vgpu.vector_add([1, 2], [3, 4.5]), np.float32([4, 6.5]))


class Arrays(WithDevice):
    def test_arrays_of_all_types_and_shapes_go_there_and_back(self):
        for dtype in ["u1", "i2", "f2", "u4", "f4", "i8", "f8", "c16", "?", "S5", "M8[s]", [("a", "u1"), ("b", "f8")]]:
            for shape in [0, 1, 1000, (3, 5), (2, 0, 4), (2, 3, 4), ()]:
                with self.subTest(dtype=dtype, shape=shape):
                    array = np.zeros(shape, dtype)
                    array.reshape(-1).view(np.uint8)[...] = np.arange(array.nbytes) % 2
                    buffer = self.dev.to_device(array)
                    back = buffer.to_host()
                    self.assertEqual((back.dtype, back.shape), (array.dtype, array.shape))
                    self.assertEqual(back.tobytes(), array.tobytes())
                    self.assertEqual((buffer.size, buffer.nbytes), (array.size, array.nbytes))

    def test_an_array_in_another_order_is_copied_in_that_of_c(self):
        array = np.arange(12, dtype=np.int32).reshape(3, 4).T
        np.testing.assert_array_equal(self.dev.to_device(array).to_host(), array)
        np.testing.assert_array_equal(self.dev.to_device(array[::2, 1:]).to_host(), array[::2, 1:])

    def test_a_read_only_array_is_a_source(self):
        array = np.arange(10, dtype=np.float64)
        array.flags.writeable = False
        np.testing.assert_array_equal(self.dev.to_device(array).to_host(), array)

    def test_a_destination_has_the_shape_and_type_and_can_be_written(self):
        buffer = self.dev.zeros((2, 3))
        fixed = np.empty((2, 3), np.float32)
        fixed.flags.writeable = False
        for out, words in [
            (np.empty((3, 2), np.float32), r"the destination is \(3, 2\)"),
            (np.empty((2, 3), np.float64), "float64"),
            (np.empty((3, 2), np.float32).T, "not C-contiguous"),
            (fixed, "read-only"),
        ]:
            with self.subTest(words), self.assertRaisesRegex(vgpu.ArgumentError, words):
                buffer.copy_to(out)
        with self.assertRaises(TypeError):
            buffer.copy_to([0.0] * 6)
        out = np.ones((2, 3), np.float32)
        self.assertIs(buffer.copy_to(out), out)
        self.assertFalse(out.any())

    def test_a_source_has_the_shape_and_type(self):
        buffer = self.dev.empty(4, np.int16)
        with self.assertRaisesRegex(vgpu.ArgumentError, "the source is"):
            buffer.copy_from(np.zeros(5, np.int16))
        with self.assertRaisesRegex(vgpu.ArgumentError, "objects"):
            self.dev.to_device(np.array([{}]))
        with self.assertRaisesRegex(vgpu.ArgumentError, "shape"):
            self.dev.empty(-1)

    def test_fills_set_every_element_whatever_its_size(self):
        for dtype, value in [("u1", 7), ("i2", -2), ("f4", 1.5), ("f8", 0.1), ("c16", 1 + 2j), ("i8", -1), ("f8", 0)]:
            with self.subTest(dtype=dtype, value=value):
                back = self.dev.empty((3, 5), dtype).fill(value).to_host()
                np.testing.assert_array_equal(back, np.full((3, 5), value, dtype))
        with self.assertRaises(vgpu.ArgumentError):
            self.dev.empty(2).fill([1, 2])

    def test_buffers_are_copied_on_the_device(self):
        array = np.arange(100, dtype=np.uint16)
        other = self.dev.empty(100, np.uint16).copy_from_buffer(self.dev.to_device(array))
        np.testing.assert_array_equal(other.to_host(), array)
        with self.assertRaises(vgpu.ArgumentError):
            self.dev.empty(99, np.uint16).copy_from_buffer(other)

    def test_memory_is_freed_at_the_end_of_a_block_or_when_nobody_has_it(self):
        free, total = self.dev.memory_info()
        self.assertLessEqual(free, total)
        with self.dev.empty(1 << 20) as buffer:
            self.assertLessEqual(self.dev.memory_info()[0], free - (1 << 22))
        self.dev.synchronize()
        self.assertEqual(self.dev.memory_info()[0], free)
        with self.assertRaisesRegex(vgpu.ArgumentError, "the buffer was closed"):
            buffer.to_host()
        self.dev.empty(1 << 20)
        gc.collect()
        self.dev.synchronize()
        self.assertEqual(self.dev.memory_info()[0], free)

    def test_too_much_memory_is_refused_with_a_code(self):
        with self.assertRaises(vgpu.RefusedError) as raised:
            self.dev.empty(1 << 58)
        self.assertEqual(raised.exception.code, "E_QUOTA_MEM")
        self.assertEqual(raised.exception.retry, "same session")

    def test_vectors_are_added_into_an_array(self):
        a = np.arange(100_000, dtype=np.float32)
        out = np.empty_like(a)
        self.assertIs(self.dev.vector_add(a, a, out), out)
        np.testing.assert_array_equal(out, a + a)
        with self.assertRaisesRegex(vgpu.ArgumentError, "overlaps"):
            self.dev.vector_add(a, a, a)
        with self.assertRaisesRegex(vgpu.ArgumentError, "shapes"):
            self.dev.vector_add(a, a[1:])
        with self.assertRaisesRegex(vgpu.ArgumentError, "float32"):
            self.dev.vector_add(a, a, np.empty(100_000))


class Kernels(WithDevice):
    def setUp(self):
        super().setUp()
        self.module = self.dev.load(SET)
        self.to = self.dev.zeros(1, np.uint32)

    def value_after(self, value):
        self.module.function("set").launch(1, 1, (self.to, value))
        return self.to.to_host()[0]

    def test_arguments_are_numbers_scalars_ctypes_and_bytes(self):
        for value, wanted in [
            (5, 5),
            (-1, 2**32 - 1),
            (True, 1),
            (1.0, 0x3F800000),
            (np.uint32(9), 9),
            (np.float32(2), 0x40000000),
            (ctypes.c_uint32(3), 3),
            (b"\x01\x02\x03\x04", 0x04030201),
        ]:
            with self.subTest(repr(value)):
                self.assertEqual(self.value_after(value), wanted)

    def test_an_argument_has_the_size_of_its_parameter(self):
        for wrong in [np.int64(1), b"", ctypes.c_byte(1), 2**32, -(2**31) - 1, 1e300]:
            with self.subTest(repr(wrong)), self.assertRaisesRegex(vgpu.ArgumentError, "argument 1"):
                self.value_after(wrong)
        with self.assertRaises(TypeError):
            self.value_after("5")
        half = self.module.function("half")
        self.assertEqual(half.parameters, (8, 8, 1))
        with self.assertRaisesRegex(vgpu.ArgumentError, "argument 2 is a float"):
            half.launch(1, 1, (self.to, 1.0, 1.0))
        with self.assertRaisesRegex(vgpu.ArgumentError, "3 parameters, 1 arguments"):
            half.launch(1, 1, (self.to,))

    def test_a_float_is_as_large_as_its_parameter(self):
        to = self.dev.zeros(1, np.float64)
        self.module.function("half")[1, 1](to, 0.3, 0)
        self.assertEqual(to.to_host()[0], 0.15)

    def test_grid_and_block_are_one_to_three_numbers(self):
        set_ = self.module.function("set")
        for grid, block in [(1, 1), ((1, 1), (2,)), ((1, 2, 1), (np.int32(1), 1, 1))]:
            set_.launch(grid, block, (self.to, 1))
        for grid, block in [(0, 1), (1, -1), ((1, 1, 1, 1), 1), (1.5, 1), ((), 1), (2**32, 1), (1, 4096)]:
            with self.subTest(grid=grid, block=block), self.assertRaises((vgpu.ArgumentError, TypeError)):
                set_.launch(grid, block, (self.to, 1))

    def test_blocks_that_run_all_at_once_are_no_more_than_the_device_has(self):
        set_ = self.module.function("set")
        set_.launch(2, 32, (self.to, 7), cooperative=True)
        self.assertEqual(self.to.to_host()[0], 7)
        set_.launch(1 << 20, 64, (self.to, 8), cooperative=True)
        with self.assertRaises(vgpu.CudaError) as raised:
            self.dev.synchronize()
        self.assertEqual(raised.exception.cuda_result, 720)

    def test_wrong_code_and_a_wrong_name_are_errors_of_cuda(self):
        with self.assertRaises(vgpu.CudaError) as raised:
            self.module.function("get")
        self.assertEqual((raised.exception.code, raised.exception.cuda_result), ("CUDA_ERROR_NOT_FOUND", 500))
        with self.assertRaises(vgpu.CudaError):
            self.dev.load("not PTX")
        with self.assertRaises(vgpu.ArgumentError):
            self.dev.load(b"")

    def test_a_kernel_that_goes_astray_is_told_by_the_next_wait(self):
        self.module.function("set").launch(1, 1, (np.uint64(0), 1))
        with self.assertRaises(vgpu.CudaError) as raised:
            self.dev.synchronize()
        self.assertEqual((raised.exception.code, raised.exception.cuda_result), ("CUDA_ERROR_ILLEGAL_ADDRESS", 700))
        self.assertTrue(raised.exception.advice)

    def test_a_failure_that_nobody_waited_for_is_raised_at_the_end_with_its_request(self):
        with self.assertRaises(vgpu.CudaError) as raised:
            with vgpu.Device() as dev:
                self.assertEqual(dev.last_requests(), [])
                dev.load(SET).function("set")[1, 1](np.uint64(16), 1)
                launch = dev.last_requests()
        (failed,) = raised.exception.requests
        self.assertEqual([failed.id], launch)
        self.assertEqual((failed.operation, failed.code), ("Launch", "CUDA_ERROR_ILLEGAL_ADDRESS"))
        self.assertEqual(raised.exception.more_requests, 0)
        with self.assertRaisesRegex(vgpu.ArgumentError, "the device was closed"):
            dev.synchronize()

    def test_a_module_is_there_as_long_as_a_function(self):
        set_ = self.dev.load(SET).function("set")
        gc.collect()
        set_.launch(1, 1, (self.to, 8))
        self.assertEqual(self.to.to_host()[0], 8)
        self.module.close()
        with self.assertRaisesRegex(vgpu.ArgumentError, "the module was closed"):
            self.module.function("set")

    def test_streams_and_events_order_work(self):
        set_ = self.module.function("set")
        with self.dev.stream() as one, self.dev.stream() as other, self.dev.event() as start:
            start.record(one)
            set_.launch(1, 1, (self.to, 1), stream=one)
            event = one.record()
            other.wait(event)
            set_[1, 1, other](self.to, 2)
            self.assertEqual(self.to.to_host(other)[0], 2)
            event.synchronize()
            self.assertTrue(event.is_done())
            self.assertGreaterEqual(event.elapsed_since(start), 0)
            with self.dev.event(timing=False) as untimed:
                untimed.record(one).synchronize()
                with self.assertRaises(vgpu.CudaError) as raised:
                    untimed.elapsed_since(start)
            self.assertEqual(raised.exception.cuda_result, 400)
            with self.dev.stream(-1, blocking=True) as blocking:
                set_[1, 1, blocking](self.to, 3)
                self.assertEqual(self.to.to_host()[0], 3)
            self.assertGreaterEqual(one.synchronize(), 0)
            self.assertTrue(one.is_done())
        with self.assertRaisesRegex(vgpu.ArgumentError, "the stream was closed"):
            one.synchronize()

    def test_attributes_of_a_kernel_have_names(self):
        set_ = self.module.function("set")
        self.assertEqual(set_.attribute("MAX_THREADS_PER_BLOCK"), set_.attribute(0))
        self.assertEqual(set_.attribute("CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK"), set_.attribute(0))
        self.assertGreater(set_.attribute(0), 0)
        self.assertEqual(vgpu.FUNCTION_ATTRIBUTES["CU_FUNC_ATTRIBUTE_NUM_REGS"], 4)
        with self.assertRaisesRegex(vgpu.ArgumentError, "no attribute 'CU_DEVICE_ATTRIBUTE_WARP_SIZE'"):
            set_.attribute("CU_DEVICE_ATTRIBUTE_WARP_SIZE")

    def test_a_buffer_of_another_session_is_an_argument_error(self):
        with vgpu.Device() as other, self.assertRaisesRegex(vgpu.ArgumentError, "of another session"):
            other._native.copy_to_device(np.zeros(1, np.uint32), self.to._native, None)


class Rectangles(WithDevice):
    def setUp(self):
        super().setUp()
        self.array = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
        self.buffer = self.dev.zeros((10, 12), np.uint16)

    def check(self, array, out):
        """3 rows of 5 from (4, 6) of `array` to (1, 2) of the buffer, and 2 of 3 from (2, 3) there to (7, 1) of `out`."""
        wait = [array, out] if isinstance(array, vgpu.Pinned) else []
        self.assertIs(self.buffer.copy_rectangle_from(array, (3, 5), at=(1, 2), array_at=(4, 6)), self.buffer)
        expected = np.zeros((10, 12), np.uint16)
        expected[1:4, 2:7] = self.array[4:7, 6:11]
        np.testing.assert_array_equal(self.buffer.to_host(), expected)
        self.assertIs(self.buffer.copy_rectangle_to(out, (2, 3), at=(2, 3), out_at=(7, 1)), out)
        for pinned in wait:
            pinned.wait()
        back = out.array if wait else out
        expected = np.full((10, 8), 9, np.uint16)
        expected[7:9, 1:4] = self.array[5:7, 7:10]
        np.testing.assert_array_equal(back, expected)

    def test_of_arrays_whatever_their_order(self):
        self.check(self.array, np.full((10, 8), 9, np.uint16))
        self.buffer.fill(0)
        self.check(np.asfortranarray(self.array), np.full((10, 8), 9, np.uint16, order="F"))

    def test_of_page_locked_memory(self):
        array, out = self.dev.pinned((20, 30), np.uint16), self.dev.pinned((10, 8), np.uint16)
        self.assertTrue(array.is_page_locked)
        array.array[...] = self.array
        out.array[...] = 9
        self.check(array, out)

    def test_without_a_shape_everything_from_there_on_is_copied(self):
        self.buffer.copy_rectangle_from(self.array, at=(8, 9), array_at=(18, 27))
        np.testing.assert_array_equal(self.buffer.to_host()[8:, 9:], self.array[18:, 27:])
        out = self.dev.pinned((2, 3), np.uint16)
        np.testing.assert_array_equal(
            self.buffer.copy_rectangle_to(out, at=(8, 9)).wait().array, self.array[18:, 27:]
        )
        self.buffer.copy_rectangle_from(self.array, array_at=(20, 30))
        self.buffer.copy_rectangle_to(out, (0, 3))

    def test_what_does_not_fit_is_an_argument_error(self):
        pinned = self.dev.pinned((20, 30), np.uint16)
        for source in self.array, pinned:
            for shape, at, array_at in [
                (None, (0, 0), (0, 0)),
                ((10, 13), (0, 0), (0, 0)),
                ((11, 12), (0, 0), (0, 0)),
                ((1, 1), (10, 0), (0, 0)),
                ((1, 1), (0, 0), (20, 0)),
                ((1, 1), (0, 0), (0, 30)),
                ((1, 1), (-1, 0), (0, 0)),
                ((1, 1), (0, 0), (0, -1)),
                ((-1, 1), (0, 0), (0, 0)),
            ]:
                with self.assertRaises(vgpu.ArgumentError, msg=(shape, at, array_at)):
                    self.buffer.copy_rectangle_from(source, shape, at=at, array_at=array_at)
                with self.assertRaises(vgpu.ArgumentError, msg=(shape, at, array_at)):
                    self.buffer.copy_rectangle_to(source, shape, at=at, out_at=array_at)
        with self.assertRaisesRegex(vgpu.ArgumentError, "one type"):
            self.buffer.copy_rectangle_from(self.array.astype(np.int16))
        with self.assertRaisesRegex(vgpu.ArgumentError, "two dimensions"):
            self.buffer.copy_rectangle_from(self.array.reshape(-1))
        with self.assertRaises(TypeError):
            self.buffer.copy_rectangle_from([[1, 2]])
        fixed = np.zeros((2, 2), np.uint16)
        fixed.flags.writeable = False
        with self.assertRaisesRegex(vgpu.ArgumentError, "read-only"):
            self.buffer.copy_rectangle_to(fixed)
        # Below them the native part checks for itself.
        native, memory = self.dev._native, self.buffer._native
        for place, shape in [((0, 24), (24, 11)), ((1, 24), (24, 10)), ((0, 23), (24, 1)), ((2**63, 2**63), (1, 3))]:
            with self.assertRaises(vgpu.ArgumentError, msg=(place, shape)):
                native.copy_rows_pinned_to_device(pinned._native, (0, 60), memory, place, shape, None)
            with self.assertRaises(vgpu.ArgumentError, msg=(place, shape)):
                native.copy_rows_from_device(memory, place, np.zeros(1000, np.uint8), shape, None)


class PageLocked(WithDevice):
    def test_copies_go_both_ways_without_waiting(self):
        array = np.arange(3 << 18, dtype=np.float32).reshape(3, -1)
        pinned = self.dev.pinned(array.shape)
        self.assertTrue(pinned.is_page_locked)
        self.assertEqual((pinned.array.shape, pinned.array.dtype), (array.shape, array.dtype))
        pinned.array[...] = array
        buffer = self.dev.empty(array.shape).copy_from(pinned)
        pinned.wait().array[...] = 0
        self.assertIs(buffer.copy_to(pinned), pinned)
        np.testing.assert_array_equal(pinned.wait().array, array)
        with self.assertRaisesRegex(vgpu.ArgumentError, "the source is"):
            self.dev.empty(4).copy_from(pinned)
        with self.assertRaisesRegex(vgpu.ArgumentError, "the destination is"):
            self.dev.empty(4).copy_to(pinned)

    def test_kernels_work_on_the_memory_itself(self):
        kernel = self.dev.load(SET).function("set")
        pinned = self.dev.pinned((), np.uint32)
        self.assertNotEqual(pinned.address, 0)
        kernel[1, 1](pinned, 7)
        self.assertEqual(pinned.wait().array, 7)
        # Nobody has it any more, and the kernel may not have begun.
        for k in range(20):
            kernel[1, 1](self.dev.pinned(1, np.uint32), k)
        self.dev.synchronize()
        self.assertEqual(pinned.array, 7)

    def test_the_memory_is_there_as_long_as_an_array_over_it(self):
        pinned = self.dev.pinned(1000, np.uint16)
        pinned.array[...] = 5
        part = pinned.array[10:20]
        del pinned
        gc.collect()
        self.assertTrue((part == 5).all())
        with self.dev.pinned(10) as pinned:
            pinned.array[...] = 1
        with self.assertRaisesRegex(vgpu.ArgumentError, "closed"):
            pinned.array
        with self.assertRaisesRegex(vgpu.ArgumentError, "closed"):
            pinned.wait()
        pinned.close()
        pinned = self.dev.pinned(10)
        part = pinned.array[:5]
        with self.assertRaises(BufferError):
            pinned.close()
        part[...] = 3
        del part
        pinned.close()
        # Also when the session is over.
        part = self.dev.pinned(1 << 20).array
        self.dev.close()
        part[...] = 1
        self.assertEqual(part.sum(), 1 << 20)

    def test_arrays_of_nothing_and_of_objects(self):
        self.assertEqual(self.dev.pinned((0, 3)).array.shape, (0, 3))
        with self.assertRaisesRegex(vgpu.ArgumentError, "objects"):
            self.dev.pinned(3, object)


class Compilation(WithDevice):
    SOURCE = 'extern "C" __global__ void set(int *x) { *x = N + PLUS; }'

    def compile(self, source, **options):
        try:
            return self.dev.compile(source, **options)
        except vgpu.UnsupportedError as error:
            self.assertIn("NVRTC", error.advice)
            self.skipTest(str(error))

    def test_a_module_is_compiled(self):
        source = '#include "plus.h"\n' + self.SOURCE
        options = {"defines": {"N": 4}, "headers": {"plus.h": "#define PLUS 3\n"}, "standard": "c++17"}
        kernel = self.compile(source, options=["--use_fast_math"], **options).function("set")
        word = self.dev.zeros((), np.int32)
        kernel[1, 1](word)
        self.assertEqual(word.to_host(), 7)

    def test_what_does_not_compile_has_a_log(self):
        with self.assertRaises(vgpu.CompileError) as raised:
            self.compile(self.SOURCE, name="mine.cu")
        self.assertIn("mine.cu", raised.exception.log)
        self.assertIn("N", raised.exception.log)

    def test_wrong_options_are_argument_errors(self):
        for options in [{"at": "nowhere"}, {"headers": {"a" * 1000: ""}, "at": "mediator"}]:
            with self.subTest(options), self.assertRaises(vgpu.ArgumentError):
                self.dev.compile(self.SOURCE, **options)
        with self.assertRaises(vgpu.ArgumentError):
            self.dev.compile("")


class Devices(unittest.TestCase):
    def test_a_device_is_chosen_by_its_number(self):
        with vgpu.Device(ordinal=0) as dev:
            self.assertEqual(dev.device_count, 1)
        with self.assertRaises(vgpu.CudaError) as raised:
            vgpu.Device(ordinal=1)
        self.assertEqual(raised.exception.code, "CUDA_ERROR_INVALID_DEVICE")


class Threads(WithDevice):
    def test_lanes_work_beside_each_other(self):
        wrong = []

        def work(k):
            lane = self.dev.lane()
            for _ in range(20):
                array = np.full(5000, k, np.int32)
                if not np.array_equal(lane.to_device(array).to_host(), array):
                    wrong.append(k)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_other_threads_run_while_one_waits(self):
        turns = 0
        done = threading.Event()

        def turn():
            nonlocal turns
            while not done.is_set():
                turns += 1
                done.wait(0.001)

        thread = threading.Thread(target=turn)
        thread.start()
        a, out = np.ones(1 << 23, np.float32), np.empty(1 << 23, np.float32)
        # As many adds as it takes. Were the interpreter held, the other thread would have a turn or two around each.
        within = 0
        for _ in range(200):
            before = turns
            self.dev.vector_add(a, a, out)
            within = turns - before
            if within >= 10:
                break
        done.set()
        thread.join()
        self.assertGreaterEqual(within, 10)


class Documents(unittest.TestCase):
    def test_the_example_of_the_readme_runs_as_it_is(self):
        readme = Path(__file__).parent.parent / "README.md"
        [example] = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
        exec(compile(example, "README.md", "exec"), {})


if __name__ == "__main__":
    unittest.main()
