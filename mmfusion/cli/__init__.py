"""The command ``mmfusion``; one small module a command, none imports TensorFlow before it runs."""
