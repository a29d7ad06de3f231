"""The runtime ncnn: conversion by pnnx, sessions, the trial in a process of its own."""
