"""tunebook"""
