"""The vision tower of Qwen2-VL and Qwen2.5-VL: pictures and videos of any size, packed."""
