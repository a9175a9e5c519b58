# Three groups of nodes. Their labels and taints are those that infra/kuberay/overlays/a100 asks for.
locals {
  node_groups = {
    cpu = {
      pool      = "cpu"
      instances = ["m7i.4xlarge"]
      image     = "AL2023_x86_64_STANDARD"
      capacity  = "ON_DEMAND"
      subnets   = var.subnet_ids
      disk_gib  = 200
      min       = 1
      max       = var.cpu_nodes_max
      taints    = []
    }
    a100 = {
      pool      = "a100"
      instances = [var.gpu_instance_type]
      image     = "AL2023_x86_64_NVIDIA"
      capacity  = "ON_DEMAND"
      subnets   = [var.gpu_subnet_id]
      disk_gib  = 1000
      min       = 0
      max       = var.gpu_nodes_max
      taints    = ["nvidia.com/gpu"]
    }
    a100-spot = {
      pool      = "a100"
      instances = [var.gpu_instance_type]
      image     = "AL2023_x86_64_NVIDIA"
      capacity  = "SPOT"
      subnets   = [var.gpu_subnet_id]
      disk_gib  = 1000
      min       = 0
      max       = var.gpu_nodes_max
      taints    = ["nvidia.com/gpu", "counterray/spot"]
    }
  }
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["ec2"].json
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryPullOnly"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:aws:iam::aws:policy/${each.key}"
}

# One hop: a pod does not reach the metadata service, and so not the node's role.
resource "aws_launch_template" "node" {
  for_each = local.node_groups

  name = "${var.name}-${each.key}"

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = each.value.disk_gib
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }
}

resource "aws_eks_node_group" "this" {
  for_each = local.node_groups

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = each.value.subnets
  instance_types  = each.value.instances
  ami_type        = each.value.image
  capacity_type   = each.value.capacity
  labels          = { "counterray/pool" = each.value.pool }

  launch_template {
    id      = aws_launch_template.node[each.key].id
    version = aws_launch_template.node[each.key].latest_version
  }

  scaling_config {
    min_size     = each.value.min
    desired_size = each.value.min
    max_size     = each.value.max
  }

  dynamic "taint" {
    for_each = toset(each.value.taints)

    content {
      key    = taint.value
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  # The cluster autoscaler sets it.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.node]
}
